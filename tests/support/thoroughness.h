// How much of a long test is done where time is short. A suite that tries every place tries every
// so-manieth of them under a sanitizer: there it looks for other mistakes (tools/lib/check.py).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <random>

namespace vmshadow::test {

/// A number from the environment, at least 1.
[[nodiscard]] inline std::uint64_t setting(const char* name, int usual) {
  const char* text = std::getenv(name);
  return static_cast<std::uint64_t>(text == nullptr ? usual : std::max(1, std::atoi(text)));
}

/// Every so-manieth operation of a crash suite: with 1, each is one to fail at.
[[nodiscard]] inline std::uint64_t crash_stride() { return setting("VMSHADOW_CRASH_STRIDE", 7); }
/// Of each cut, so many of the states that it may leave the disk in.
/// Kills of a sidecar that protects disks.
[[nodiscard]] inline std::uint64_t disk_kills() { return setting("VMSHADOW_DISK_KILLS", 8); }

[[nodiscard]] inline std::uint64_t crash_seeds() { return setting("VMSHADOW_CRASH_SEEDS", 2); }
/// Every so-manieth place in what is cheap: all of them, unless the crash stride is a long one.
[[nodiscard]] inline std::uint64_t place_stride() {
  return std::max<std::uint64_t>(1, crash_stride() / 6);
}

/// How often a process is killed at random: fewer times where the crash stride is a long one.
[[nodiscard]] inline std::uint64_t kill_rounds() {
  return setting("VMSHADOW_KILL_ROUNDS", place_stride() > 1 ? 3 : 8);
}

/// How many VMs one store has at a time: fewer where the crash stride is a long one.
[[nodiscard]] inline std::size_t vms_at_once() { return place_stride() > 1 ? 40 : 200; }

/// Epochs of the soak, and restores out of it: a taste here; 10000 and 50 are the whole.
[[nodiscard]] inline std::uint64_t soak_epochs() { return setting("VMSHADOW_SOAK_EPOCHS", 150); }
[[nodiscard]] inline std::uint64_t soak_restores() { return setting("VMSHADOW_SOAK_RESTORES", 3); }

/// VMSHADOW_TEST_SEED, or one at random: to be printed, so that a failure can be repeated.
[[nodiscard]] inline std::uint32_t draw_seed() {
  const char* fixed = std::getenv("VMSHADOW_TEST_SEED");
  return fixed != nullptr ? static_cast<std::uint32_t>(std::strtoul(fixed, nullptr, 10))
                          : std::random_device{}();
}

}  // namespace vmshadow::test
