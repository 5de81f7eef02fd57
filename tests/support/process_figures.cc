#include "support/process_figures.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace vmshadow::test {

Result<std::chrono::nanoseconds> cpu_time_of(pid_t pid) {
  std::chrono::nanoseconds sum{};
  std::error_code error;
  for (std::filesystem::directory_iterator it(fmt::format("/proc/{}/task", pid), error), end;
       !error && it != end; it.increment(error)) {
    std::ifstream file(it->path() / "schedstat");
    std::int64_t ns = 0;
    if (file >> ns) sum += std::chrono::nanoseconds(ns);  // a thread may just have ended
  }
  if (error) return fail_errno(error.value(), fmt::format("reading the threads of {}", pid));
  if (sum.count() == 0) {
    return fail(Errc::unsupported, "this kernel does not count the time of threads (schedstat)");
  }
  return sum;
}

Result<Resident> resident_bytes(pid_t pid) {
  std::ifstream lines(fmt::format("/proc/{}/status", pid));
  Resident resident;
  for (std::string word; lines >> word;) {
    if (word != "VmHWM:" && word != "VmRSS:") continue;
    std::uint64_t kib = 0;
    if (lines >> kib) (word == "VmRSS:" ? resident.now : resident.peak) = kib * 1024;
  }
  if (resident.now == 0 || resident.peak == 0) {
    return fail(Errc::not_found, fmt::format("process {} says nothing of its memory", pid));
  }
  return resident;
}

}  // namespace vmshadow::test
