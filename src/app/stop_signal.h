// SIGINT and SIGTERM as a descriptor to poll: construct before any thread starts.
#pragma once

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>

#include <cerrno>

#include <vmshadow/result.h>

#include "base/unique_fd.h"
#include "io/socket.h"

namespace vmshadow::app {

class StopSignal {
 public:
  /// Blocks both signals for this thread and those it will start. SIGPIPE is ignored from here on:
  /// a reader of our output that ends must not end us.
  [[nodiscard]] static Result<StopSignal> create() {
    sigset_t signals;
    ::sigemptyset(&signals);
    ::sigaddset(&signals, SIGINT);
    ::sigaddset(&signals, SIGTERM);
    ::sigprocmask(SIG_BLOCK, &signals, nullptr);
    ::signal(SIGPIPE, SIG_IGN);
    StopSignal stop;
    stop.fd_.reset(::signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC));
    if (!stop.fd_) return fail_errno(errno, "making a signal descriptor");
    return stop;
  }
  /// Readable once a signal came; stays so.
  [[nodiscard]] int fd() const { return fd_.get(); }
  /// Waits; true if a signal came before the deadline.
  [[nodiscard]] bool wait(io::Deadline deadline) const {
    return io::wait_for(fd_.get(), POLLIN, deadline).has_value();
  }

 private:
  StopSignal() = default;
  UniqueFd fd_;
};

}  // namespace vmshadow::app
