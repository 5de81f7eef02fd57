// Keys of VMs for tests: given, changed and taken away as a test likes.
#pragma once

#include <fmt/format.h>

#include <array>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "crypt/key_source.h"

namespace vmshadow::test {

/// 32 bytes of one value.
[[nodiscard]] inline std::array<std::byte, crypt::kKeyBytes> key_bytes(unsigned value) {
  std::array<std::byte, crypt::kKeyBytes> bytes;
  bytes.fill(static_cast<std::byte>(value));
  return bytes;
}

class GivenKeys final : public crypt::KeySource {
 public:
  /// The first seals.
  void give(const std::string& vm, std::vector<unsigned> values) {
    const std::lock_guard lock(mutex_);
    values_[vm] = std::move(values);
  }
  void take_away(const std::string& vm) {
    const std::lock_guard lock(mutex_);
    values_.erase(vm);
  }
  [[nodiscard]] Result<std::vector<crypt::SecretKey>> keys_of(
      const std::string& vm_name) const override {
    const std::lock_guard lock(mutex_);
    const auto found = values_.find(vm_name);
    if (found == values_.end()) {
      return fail(Errc::not_found, fmt::format("VM '{}' has no key: none was given", vm_name));
    }
    std::vector<crypt::SecretKey> keys;
    for (const unsigned value : found->second) {
      VMSHADOW_ASSIGN(crypt::SecretKey key, crypt::SecretKey::copy_of(key_bytes(value)));
      keys.push_back(std::move(key));
    }
    return keys;
  }

 private:
  mutable std::mutex mutex_;
  std::map<std::string, std::vector<unsigned>> values_;
};

}  // namespace vmshadow::test
