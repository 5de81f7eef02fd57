#include "base/say.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

namespace vmshadow {

void write_line(int fd, std::string_view line) {
  pollfd ready{fd, POLLOUT, 0};
  if (::poll(&ready, 1, 0) != 1 || (ready.revents & POLLOUT) == 0) return;
  // One write, so that lines of two processes do not mix.
  const auto text = fmt::format("{}\n", line);
  [[maybe_unused]] const auto ignored = ::write(fd, text.data(), text.size());
}

void say(std::string_view program, std::string_view sentence) {
  write_line(STDERR_FILENO, fmt::format("{}: {}", program, sentence));
}

}  // namespace vmshadow
