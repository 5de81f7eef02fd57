// Where an operator keeps the keys of VMs.
#pragma once

#include <string>
#include <vector>

#include <vmshadow/result.h>

#include "crypt/secret_key.h"

namespace vmshadow::crypt {

class KeySource {
 public:
  virtual ~KeySource() = default;
  /// The keys of a VM, see parse_keys(); never empty. Asked anew each time, from any thread. Errors
  /// name the VM, where its key was looked for and what to do: Errc::not_found (it has none),
  /// Errc::permission, Errc::invalid_argument (it is no key), Errc::io, Errc::timed_out.
  [[nodiscard]] virtual Result<std::vector<SecretKey>> keys_of(
      const std::string& vm_name) const = 0;
};

}  // namespace vmshadow::crypt
