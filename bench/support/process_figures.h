// What a process has used, threads included; read from /proc.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>

#include <vmshadow/result.h>

namespace vmshadow::bench {

/// Time on a processor so far, to the nanosecond, of the threads that live now.
[[nodiscard]] Result<std::chrono::nanoseconds> cpu_time_of(pid_t pid);
/// The most memory it ever had resident.
[[nodiscard]] Result<std::uint64_t> peak_resident_bytes(pid_t pid);

}  // namespace vmshadow::bench
