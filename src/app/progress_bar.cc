#include "app/progress_bar.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

namespace vmshadow::app {
namespace {

constexpr std::size_t kBarCells = 30;

std::string left_text(double seconds) {
  if (seconds < 100) return fmt::format("{:.0f} s left", seconds);
  const auto minutes = static_cast<std::uint64_t>(seconds / 60);
  if (minutes < 100) return fmt::format("{} min left", minutes);
  return fmt::format("{} h {:02} min left", minutes / 60, minutes % 60);
}

}  // namespace

std::string mb_text(std::uint64_t bytes) {
  return fmt::format("{:.1f} MB", static_cast<double>(bytes) / 1e6);
}

std::string progress_text(const std::string& what, std::uint64_t done, std::uint64_t total,
                          std::chrono::nanoseconds elapsed) {
  done = std::min(done, total);
  const double share = total == 0 ? 1 : static_cast<double>(done) / static_cast<double>(total);
  const auto cells = static_cast<std::size_t>(share * static_cast<double>(kBarCells));
  std::string bar(cells, '#');
  for (std::size_t i = cells; i < kBarCells; ++i) bar += "·";
  std::string text = fmt::format("{}  [{}]  {:.0f} %  {:.1f} of {}", what, bar, 100 * share,
                                 static_cast<double>(done) / 1e6, mb_text(total));
  const double seconds = std::chrono::duration<double>(elapsed).count();
  if (done == 0 || seconds <= 0) return text;
  const double rate = static_cast<double>(done) / seconds;
  return text + fmt::format("  {:.1f} MB/s  {}", rate / 1e6,
                            left_text(static_cast<double>(total - done) / rate));
}

ProgressBar::ProgressBar(std::string what)
    : ProgressBar(std::move(what), ::isatty(STDERR_FILENO) != 0 ? stderr : nullptr,
                  system_clock()) {}

ProgressBar::ProgressBar(std::string what, std::FILE* out, const Clock& clock)
    : what_(std::move(what)),
      out_(out),
      clock_(clock),
      start_(clock.monotonic()),
      next_(start_ + kAfter) {}

ProgressBar::~ProgressBar() {
  if (!shown_) return;
  std::fputs("\r\033[K", out_);
  std::fflush(out_);
}

void ProgressBar::update(std::uint64_t done_bytes, std::uint64_t total_bytes) {
  if (out_ == nullptr || total_bytes == 0) return;
  const MonotonicTime now = clock_.monotonic();
  if (now < next_) return;
  next_ = now + kEvery;
  shown_ = true;
  std::fputs(
      ("\r" + progress_text(what_, done_bytes, total_bytes, now - start_) + "\033[K").c_str(),
      out_);
  std::fflush(out_);
}

}  // namespace vmshadow::app
