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

/// An event, or a reply with an id: before the greeting, it was meant for the client before us.
/// QEMU takes its next client in two steps, and what its main thread says in between goes to that
/// one.
[[nodiscard]] bool is_of_client_before(const Json& message);

}  // namespace vmshadow::qmp
