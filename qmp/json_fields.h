// Reading members of a peer's JSON without exceptions: absent or of another type is a null or
// nullopt, never a throw.
#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <optional>
#include <string>

namespace vmshadow::qmp {

/// The member `key`, or null if `object` is no object or has none.
[[nodiscard]] inline const nlohmann::json* member(const nlohmann::json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() ? nullptr : &*found;
}

[[nodiscard]] inline const std::string* string_member(const nlohmann::json& object,
                                                      const char* key) {
  const nlohmann::json* value = member(object, key);
  return value == nullptr ? nullptr : value->get_ptr<const std::string*>();
}

[[nodiscard]] inline std::optional<bool> bool_member(const nlohmann::json& object,
                                                     const char* key) {
  const nlohmann::json* value = member(object, key);
  if (value == nullptr || !value->is_boolean()) return std::nullopt;
  return value->get<bool>();
}

/// A whole number that fits 64 bits with its sign.
[[nodiscard]] inline std::optional<std::int64_t> integer_member(const nlohmann::json& object,
                                                                const char* key) {
  const nlohmann::json* value = member(object, key);
  if (value == nullptr || !value->is_number_integer()) return std::nullopt;
  const auto number = value->get<std::int64_t>();
  if (value->is_number_unsigned() && number < 0) return std::nullopt;
  return number;
}

[[nodiscard]] inline std::optional<std::uint64_t> unsigned_member(const nlohmann::json& object,
                                                                  const char* key) {
  const nlohmann::json* value = member(object, key);
  if (value == nullptr || !value->is_number_unsigned()) return std::nullopt;
  return value->get<std::uint64_t>();
}

}  // namespace vmshadow::qmp
