// fio, the baseline for writing: sequential O_DIRECT writes through io_uring, synced at the end or
// every so many writes, of a new file or of one whose blocks were written before.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <vmshadow/result.h>

namespace vmshadow::bench {

struct FioSetting {
  std::string block;  ///< "64k"
  unsigned depth{};
  bool over = false;             ///< over a file that is there, rather than into a new one
  unsigned writes_per_sync = 0;  ///< 0: only one sync, at the end
  [[nodiscard]] std::string text() const;
};

/// Errc::unsupported, naming the package, if fio is not installed.
[[nodiscard]] Status require_fio();
[[nodiscard]] Result<std::string> fio_version();
/// Bytes a second of one run writing a file of `bytes` in `directory`, the sync included.
[[nodiscard]] Result<double> fio_write(const std::string& directory, const FioSetting& setting,
                                       std::uint64_t bytes);
/// What fio_write runs, for the report.
[[nodiscard]] std::string fio_command_text(const FioSetting& setting, std::uint64_t bytes);

}  // namespace vmshadow::bench
