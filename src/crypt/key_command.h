// A command that prints a VM's key, as a vault's client does: run by /bin/sh with the VM's name as
// its last argument, and in VMSHADOW_VM. What it says on stderr goes to ours; it has ten seconds.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "crypt/key_source.h"

namespace vmshadow::crypt {

class KeyCommand final : public KeySource {
 public:
  static constexpr std::chrono::milliseconds kPatience{10'000};
  explicit KeyCommand(std::string command, std::chrono::milliseconds patience = kPatience)
      : command_(std::move(command)), patience_(patience) {}
  [[nodiscard]] Result<std::vector<SecretKey>> keys_of(const std::string& vm_name) const override;

 private:
  const std::string command_;
  const std::chrono::milliseconds patience_;
};

}  // namespace vmshadow::crypt
