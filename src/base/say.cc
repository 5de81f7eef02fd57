#include "base/say.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

namespace vmshadow {

void say(std::string_view program, std::string_view sentence) {
  pollfd ready{STDERR_FILENO, POLLOUT, 0};
  if (::poll(&ready, 1, 0) != 1 || (ready.revents & POLLOUT) == 0) return;
  // One write, so that lines of two processes do not mix.
  const auto line = fmt::format("{}: {}\n", program, sentence);
  [[maybe_unused]] const auto ignored = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace vmshadow
