// The words of QEMU's migration stream, as migration/savevm.c and ram.c write and read them:
// capture parses them, replay writes them. All integers of the stream are big-endian.
#pragma once

#include <cstdint>

namespace vmshadow::migration_format {

inline constexpr std::uint32_t kStreamMagic = 0x5145564d;  // "QEVM"
inline constexpr std::uint32_t kStreamVersion = 3;

// What a section begins with.
inline constexpr std::uint8_t kEof = 0x00;
inline constexpr std::uint8_t kSectionStart = 0x01;
inline constexpr std::uint8_t kSectionPart = 0x02;
inline constexpr std::uint8_t kSectionEnd = 0x03;
inline constexpr std::uint8_t kSectionFull = 0x04;
inline constexpr std::uint8_t kSubsection = 0x05;
inline constexpr std::uint8_t kVmDescription = 0x06;
inline constexpr std::uint8_t kConfiguration = 0x07;
inline constexpr std::uint8_t kCommand = 0x08;
inline constexpr std::uint8_t kSectionFooter = 0x7e;

// The low bits of a RAM payload word; the rest is an offset into the block.
inline constexpr std::uint64_t kRamFlagMask = 0xfff;
inline constexpr std::uint64_t kRamZero = 0x02;
inline constexpr std::uint64_t kRamMemSize = 0x04;
inline constexpr std::uint64_t kRamPage = 0x08;
inline constexpr std::uint64_t kRamEos = 0x10;
inline constexpr std::uint64_t kRamContinue = 0x20;

}  // namespace vmshadow::migration_format
