#include "qmp/greeting.h"

#include <algorithm>
#include <utility>

#include "qmp/json_fields.h"

namespace vmshadow::qmp {

std::optional<Greeting> read_greeting(const Json& message) {
  const Json* qmp = member(message, "QMP");
  const Json* version = qmp == nullptr ? nullptr : member(*qmp, "version");
  const Json* qemu = version == nullptr ? nullptr : member(*version, "qemu");
  if (qemu == nullptr) return std::nullopt;
  Greeting greeting;
  for (const auto& [key, number] : {std::pair{"major", &greeting.version.major},
                                    {"minor", &greeting.version.minor},
                                    {"micro", &greeting.version.micro}}) {
    const auto value = integer_member(*qemu, key);
    if (!value || *value < 0 || *value > 1'000'000) return std::nullopt;
    *number = static_cast<int>(*value);
  }
  if (const auto* package = string_member(*version, "package")) greeting.version.package = *package;
  if (const Json* capabilities = member(*qmp, "capabilities"); capabilities != nullptr) {
    greeting.offers_oob =
        std::find(capabilities->begin(), capabilities->end(), Json("oob")) != capabilities->end();
  }
  return greeting;
}

bool is_of_client_before(const Json& message) {
  const bool reply = member(message, "return") != nullptr || member(message, "error") != nullptr;
  return string_member(message, reply ? "id" : "event") != nullptr;
}

}  // namespace vmshadow::qmp
