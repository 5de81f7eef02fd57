#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include <vmshadow/types.h>

namespace vmshadow {

std::string VmId::hex() const {
  std::string text;
  for (const std::byte b : bytes) text += fmt::format("{:02x}", static_cast<unsigned>(b));
  return text;
}

bool is_valid_vm_name(std::string_view name) {
  if (name.empty() || name.size() > kVmNameBytesMax) return false;
  if (name.front() == '.' || name.front() == '-') return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  });
}

VmId vm_id(std::string_view name) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(name.data(), name.size()));
  VmId id;
  static_assert(sizeof canonical == sizeof id.bytes);
  std::memcpy(id.bytes.data(), &canonical, sizeof canonical);
  return id;
}

}  // namespace vmshadow
