#include "store/damage.h"

#include <fmt/format.h>

#include <charconv>
#include <string_view>

namespace vmshadow::store {

std::string Damage::text() const {
  std::string whose;
  if (epoch) whose += fmt::format(", epoch {}", epoch->value);
  if (!vm_name.empty()) whose += fmt::format("{} VM '{}'", epoch ? " of" : ",", vm_name);
  return fmt::format("segment {}, offset {}{}: {}", segment_file_name(at.segment), at.offset.value,
                     whose, what);
}

Error Damage::error() const { return Error{Errc::corrupt, text()}; }

namespace {

constexpr std::string_view kSegmentSuffix = ".seg";
constexpr std::string_view kSpareSuffix = ".spare";
constexpr std::string_view kAsideSuffix = ".aside";
constexpr std::size_t kIdDigits = 16;

std::string file_name(SegmentId id, std::string_view suffix) {
  return fmt::format("{:016x}{}", id.value, suffix);
}

std::optional<SegmentId> parse_file_name(const std::string& name, std::string_view suffix) {
  if (name.size() != kIdDigits + suffix.size()) return std::nullopt;
  SegmentId id;
  const char* const digits_end = name.data() + kIdDigits;
  const auto [end, error] = std::from_chars(name.data(), digits_end, id.value, 16);
  if (error != std::errc{} || end != digits_end || file_name(id, suffix) != name) {
    return std::nullopt;
  }
  return id;
}

}  // namespace

std::string segment_file_name(SegmentId id) { return file_name(id, kSegmentSuffix); }

std::optional<SegmentId> parse_segment_file_name(const std::string& name) {
  return parse_file_name(name, kSegmentSuffix);
}

std::string spare_file_name(SegmentId id) { return file_name(id, kSpareSuffix); }

std::optional<SegmentId> parse_spare_file_name(const std::string& name) {
  return parse_file_name(name, kSpareSuffix);
}

std::string aside_file_name(SegmentId id) { return file_name(id, kAsideSuffix); }

std::optional<SegmentId> parse_aside_file_name(const std::string& name) {
  return parse_file_name(name, kAsideSuffix);
}

}  // namespace vmshadow::store
