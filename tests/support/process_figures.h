// What a process has used, threads included; read from /proc.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>

#include <vmshadow/result.h>

namespace vmshadow::test {

/// Time on a processor so far, to the nanosecond, of the threads that live now.
[[nodiscard]] Result<std::chrono::nanoseconds> cpu_time_of(pid_t pid);
/// What it has of the machine's memory, in bytes.
struct Resident {
  std::uint64_t now{};
  std::uint64_t peak{};
};
[[nodiscard]] Result<Resident> resident_bytes(pid_t pid);

}  // namespace vmshadow::test
