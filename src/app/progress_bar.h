// How far a long piece of work is, for a person at a terminal: shown on stderr once it has taken
// two seconds, wiped when it ends. Says nothing if stderr is no terminal.
//
//   restoring web1  [#########·····················]  31 %  310.4 of 1001.2 MB  155.2 MB/s  4 s
//   left
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

#include <vmshadow/clock.h>

namespace vmshadow::app {

/// "310.4 MB": 10^6 bytes.
[[nodiscard]] std::string mb_text(std::uint64_t bytes);

/// The line for `done` of `total` bytes after `elapsed`. Pure.
[[nodiscard]] std::string progress_text(const std::string& what, std::uint64_t done,
                                        std::uint64_t total, std::chrono::nanoseconds elapsed);

class ProgressBar {
 public:
  static constexpr std::chrono::milliseconds kAfter{2000};
  static constexpr std::chrono::milliseconds kEvery{200};

  /// On stderr, by the system's clock.
  explicit ProgressBar(std::string what);
  /// On `out`, which is a terminal. Both outlive it.
  ProgressBar(std::string what, std::FILE* out, const Clock& clock);
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  ~ProgressBar();

  /// Cheap enough to be called for every few pages.
  void update(std::uint64_t done_bytes, std::uint64_t total_bytes);

 private:
  std::string what_;
  std::FILE* out_;  ///< null: nobody looks
  const Clock& clock_;
  const MonotonicTime start_;
  MonotonicTime next_;
  bool shown_ = false;
};

}  // namespace vmshadow::app
