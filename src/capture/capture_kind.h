// The two ways to take epochs from a running QEMU.
#pragma once

#include <cstdint>

namespace vmshadow::capture {

enum class CaptureKind : std::uint8_t {
  colo,       ///< checkpoints: only what was dirtied since the last one is sent (ColoSource)
  full_pass,  ///< a whole migration for each epoch (FullPassSource)
};

[[nodiscard]] constexpr const char* text_of(CaptureKind kind) {
  return kind == CaptureKind::colo ? "colo" : "full-pass";
}

}  // namespace vmshadow::capture
