// Makes a VM's epochs as a sidecar would ship them, and keeps the model of what each one must read
// back as. Raw page groups: these tests are about where bytes go, not how small they are.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include <vmshadow/epoch_sink.h>
#include <vmshadow/machine.h>
#include <vmshadow/shadow_reader.h>

#include "format/epoch_records.h"

namespace vmshadow::test {

/// A page's content: 0 is the zero page, any other number a page made from it.
using Stamp = std::uint64_t;
[[nodiscard]] std::vector<std::byte> page_of(Stamp stamp);

/// What an epoch must read back as.
struct ModelImage {
  std::map<std::uint64_t, Stamp> pages;  ///< packed key → content; absent: zero
  std::vector<std::byte> device;
  MachineDescription machine;
};

struct MadeEpoch {
  std::vector<std::vector<std::byte>> records;  ///< without the epoch_end
  std::vector<std::byte> end;
};

class EpochMaker {
 public:
  explicit EpochMaker(std::string vm_name, std::uint64_t ram_pages = 64);

  struct PageWrite {
    std::uint64_t page{};
    Stamp stamp{};
    std::uint16_t block{};
  };
  /// The records of an epoch and, in image(), what it makes of the VM. A full one forgets all
  /// before.
  [[nodiscard]] MadeEpoch make(Generation generation, Epoch epoch, bool full,
                               const std::vector<PageWrite>& writes, std::size_t group_pages = 4,
                               std::size_t device_bytes = 300);
  [[nodiscard]] const ModelImage& image() const { return image_; }
  /// As before make() was called last (the epoch was not taken).
  void take_back() { image_ = before_; }
  [[nodiscard]] const std::string& vm_name() const { return vm_name_; }
  [[nodiscard]] const MachineDescription& machine() const { return machine_; }

 private:
  std::string vm_name_;
  MachineDescription machine_;
  ModelImage image_;
  ModelImage before_;
};

/// Sends a made epoch through a session.
[[nodiscard]] Result<CommitReceipt> ship(EpochSession& session, const MadeEpoch& epoch);

/// What differs between an image and the model; empty if nothing does. Reads every page both ways.
[[nodiscard]] std::string compare(const EpochImage& image, const ModelImage& model);

}  // namespace vmshadow::test
