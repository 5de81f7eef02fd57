#include "store/damage.h"

#include <fmt/format.h>

#include <charconv>

namespace vmshadow::store {

std::string Damage::text() const {
  std::string whose;
  if (epoch) whose += fmt::format(", epoch {}", epoch->value);
  if (!vm_name.empty()) whose += fmt::format("{} VM '{}'", epoch ? " of" : ",", vm_name);
  return fmt::format("segment {}, offset {}{}: {}", segment_file_name(at.segment), at.offset.value,
                     whose, what);
}

Error Damage::error() const { return Error{Errc::corrupt, text()}; }

std::string segment_file_name(SegmentId id) { return fmt::format("{:016x}.seg", id.value); }

std::optional<SegmentId> parse_segment_file_name(const std::string& name) {
  if (name.size() != 20 || !name.ends_with(".seg")) return std::nullopt;
  SegmentId id;
  const auto [end, error] = std::from_chars(name.data(), name.data() + 16, id.value, 16);
  if (error != std::errc{} || end != name.data() + 16 || segment_file_name(id) != name) {
    return std::nullopt;
  }
  return id;
}

}  // namespace vmshadow::store
