// Where a program's running report goes: a stream over stdout or stderr that never fails.
//
// A terminal that is closed gives EIO, a reader that ends EPIPE: neither may end a program that has
// a VM in its care, and code that formats (fmt::print) throws on either. So what cannot be written
// is dropped here, below the formatting.
#pragma once

#include <stdio.h>
#include <unistd.h>

#include <cerrno>

namespace vmshadow::app {

/// A stream that writes to `fd` (STDOUT_FILENO or STDERR_FILENO) and never reports a failure. Fully
/// buffered: flush it. Not closed before the program's end. Null if there is no memory.
inline std::FILE* open_report_stream(int fd) {
  static int out = STDOUT_FILENO;
  static int err = STDERR_FILENO;
  cookie_io_functions_t functions{};
  functions.write = [](void* cookie, const char* text, std::size_t bytes) -> ssize_t {
    const int to = *static_cast<const int*>(cookie);
    for (std::size_t at = 0; at < bytes;) {
      const ssize_t written = ::write(to, text + at, bytes - at);
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) break;
      at += static_cast<std::size_t>(written);
    }
    return static_cast<ssize_t>(bytes);
  };
  return ::fopencookie(fd == STDOUT_FILENO ? &out : &err, "w", functions);
}

}  // namespace vmshadow::app
