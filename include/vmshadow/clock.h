// Time, injected: nothing below src/app reads a clock by itself, so tests and simulations can set
// it.
#pragma once

#include <chrono>
#include <cstdint>

namespace vmshadow {

/// Nanoseconds on CLOCK_MONOTONIC. Only differences mean anything; never leaves this host.
struct MonotonicTime {
  std::int64_t ns{};
  auto operator<=>(const MonotonicTime&) const = default;
  [[nodiscard]] std::chrono::nanoseconds operator-(MonotonicTime other) const {
    return std::chrono::nanoseconds{ns - other.ns};
  }
  [[nodiscard]] MonotonicTime operator+(std::chrono::nanoseconds d) const {
    return MonotonicTime{ns + d.count()};
  }
};

/// Nanoseconds since 1970-01-01 UTC. May jump; stored with epochs, shown to people.
struct WallTime {
  std::int64_t ns{};
  auto operator<=>(const WallTime&) const = default;
};

class Clock {
 public:
  virtual ~Clock() = default;
  [[nodiscard]] virtual MonotonicTime monotonic() const = 0;
  [[nodiscard]] virtual WallTime wall() const = 0;
};

/// The machine's own clocks. Stateless; safe from any thread; lives for the whole process.
[[nodiscard]] const Clock& system_clock();

}  // namespace vmshadow
