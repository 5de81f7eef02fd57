// A directory with a file NAME.key for each VM, readable by its owner alone.
#pragma once

#include <string>
#include <vector>

#include "crypt/key_source.h"

namespace vmshadow::crypt {

class KeyDirectory final : public KeySource {
 public:
  explicit KeyDirectory(std::string path) : path_(std::move(path)) {}
  [[nodiscard]] Result<std::vector<SecretKey>> keys_of(const std::string& vm_name) const override;

 private:
  const std::string path_;
};

}  // namespace vmshadow::crypt
