// What a store must hold after a workload: each acknowledged epoch's image, and those that may be
// there because nobody heard whether they made it.
#pragma once

#include <fmt/format.h>

#include <map>
#include <string>
#include <vector>

#include <vmshadow/shadow_reader.h>

#include "support/epoch_maker.h"

namespace vmshadow::test {

struct StoreModel {
  using Images = std::map<std::uint64_t, ModelImage>;
  std::map<std::string, Images> acknowledged;
  /// By VM and epoch, every attempt at it.
  std::map<std::string, std::map<std::uint64_t, std::vector<ModelImage>>> unheard;

  /// Ships an epoch and files it under what came of it; returns the error, if any.
  Status ship(EpochSession& session, EpochMaker& maker, const MadeEpoch& made) {
    const std::uint64_t epoch = session.next_epoch().value;
    auto receipt = test::ship(session, made);
    if (receipt) {
      acknowledged[maker.vm_name()][epoch] = maker.image();
      return {};
    }
    unheard[maker.vm_name()][epoch].push_back(maker.image());
    maker.take_back();
    return fail(std::move(receipt).error());
  }

  /// What is wrong with what `reader` shows; empty if nothing is.
  [[nodiscard]] std::string check(const ShadowReader& reader) const {
    for (const auto& [vm, images] : acknowledged) {
      const auto info = reader.vm(vm);
      if (!info) return info.error().message;
      for (const auto& [epoch, image] : images) {
        const auto read = reader.open(vm, Epoch{epoch});
        if (!read) return fmt::format("acknowledged: {}", read.error().message);
      }
    }
    const auto vms = reader.vms();
    if (!vms) return vms.error().message;
    for (const VmInfo& vm : *vms) {
      for (const EpochInfo& epoch : vm.epochs) {
        const auto image = reader.open(vm.name, epoch.epoch);
        if (!image) return image.error().message;
        if (auto trouble = compare_any(**image, vm.name, epoch.epoch.value); !trouble.empty()) {
          return fmt::format("epoch {} of {}: {}", epoch.epoch.value, vm.name, trouble);
        }
      }
    }
    return {};
  }

 private:
  /// An acknowledged epoch is the acknowledged one; any other must be one of the attempts.
  [[nodiscard]] std::string compare_any(const EpochImage& image, const std::string& vm,
                                        std::uint64_t epoch) const {
    if (const auto images = acknowledged.find(vm); images != acknowledged.end()) {
      const auto model = images->second.find(epoch);
      if (model != images->second.end()) return compare(image, model->second);
    }
    std::string trouble = "never committed";
    const auto attempts = unheard.find(vm);
    if (attempts == unheard.end() || !attempts->second.contains(epoch)) return trouble;
    for (const ModelImage& model : attempts->second.at(epoch)) {
      trouble = compare(image, model);
      if (trouble.empty()) break;
    }
    return trouble;
  }
};

}  // namespace vmshadow::test
