// The first message of a monitor: which QEMU it is and what it offers.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <optional>

#include "qmp/session.h"

namespace vmshadow::qmp {

struct Greeting {
  QemuVersion version;
  bool offers_oob = false;
};

/// nullopt if the message is not QMP's greeting.
[[nodiscard]] std::optional<Greeting> read_greeting(const Json& message);

}  // namespace vmshadow::qmp
