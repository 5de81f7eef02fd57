// Descriptors 0 to 2 of a program that was started without them.
#pragma once

#include <fcntl.h>
#include <unistd.h>

namespace vmshadow {

/// Opens /dev/null for each of stdin, stdout and stderr that is closed: else the next socket or
/// segment file would get its number, and what is meant for the operator would be written into it.
/// To be called first.
inline void open_standard_streams() {
  for (;;) {
    // The lowest number that is free.
    const int fd = ::open("/dev/null", O_RDWR);
    if (fd < 0) return;
    if (fd > STDERR_FILENO) {
      ::close(fd);
      return;
    }
  }
}

}  // namespace vmshadow
