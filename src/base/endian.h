// Integers made of bytes, so that a wire or disk struct is just a struct: no padding, no alignment,
// no native byte order. (The idea is mold's lib/integers.h.)
#pragma once

#include <array>
#include <bit>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace vmshadow {

template <class Integer, std::endian order>
class EndianInteger {
 public:
  constexpr EndianInteger() = default;
  constexpr explicit EndianInteger(Integer v) { set(v); }

  constexpr void set(Integer v) {
    if constexpr (order != std::endian::native) v = swap(v);
    bytes_ = std::bit_cast<std::array<std::byte, sizeof(Integer)>>(v);
  }
  [[nodiscard]] constexpr Integer get() const {
    auto v = std::bit_cast<Integer>(bytes_);
    if constexpr (order != std::endian::native) v = swap(v);
    return v;
  }
  constexpr EndianInteger& operator=(Integer v) {
    set(v);
    return *this;
  }
  constexpr bool operator==(const EndianInteger&) const = default;

 private:
  static constexpr Integer swap(Integer v) {
    if constexpr (sizeof(Integer) == 1) return v;
    if constexpr (sizeof(Integer) == 2) return __builtin_bswap16(v);
    if constexpr (sizeof(Integer) == 4) return __builtin_bswap32(v);
    if constexpr (sizeof(Integer) == 8) return __builtin_bswap64(v);
  }
  std::array<std::byte, sizeof(Integer)> bytes_{};
};

using le16 = EndianInteger<std::uint16_t, std::endian::little>;
using le32 = EndianInteger<std::uint32_t, std::endian::little>;
using le64 = EndianInteger<std::uint64_t, std::endian::little>;
using be16 = EndianInteger<std::uint16_t, std::endian::big>;
using be32 = EndianInteger<std::uint32_t, std::endian::big>;
using be64 = EndianInteger<std::uint64_t, std::endian::big>;
static_assert(sizeof(le64) == 8 && alignof(le64) == 1 && std::is_trivially_copyable_v<le64>);

/// Reads an integer of the given byte order from unaligned memory.
template <class Endian>
[[nodiscard]] inline auto load(const std::byte* from) {
  Endian e;
  std::memcpy(&e, from, sizeof e);
  return e.get();
}

}  // namespace vmshadow
