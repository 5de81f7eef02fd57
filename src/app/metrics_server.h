// Gives a page of metrics to whoever asks: over HTTP, and as a file that is replaced again and
// again (for node_exporter's textfile collector).
//
// A program's work never depends on it: a port or a file that cannot be had is said, once, and
// tried again. One thread, a fixed number of connections, each with a deadline. Where they are all
// taken a new one replaces the oldest, so peers that connect and say nothing never keep a scraper
// out; and the page is made anew at most every `page_every`, however many ask.
#pragma once

#include <chrono>
#include <functional>
#include <list>
#include <optional>
#include <string>

#include <vmshadow/result.h>

#include "base/unique_fd.h"
#include "io/socket.h"

namespace vmshadow::app {

class MetricsServer {
 public:
  struct Options {
    std::optional<io::TcpAddress> listen;  ///< none: only the file
    std::string file;                      ///< empty: none
    std::chrono::milliseconds file_every{10'000};
    /// Until a port that could not be had is tried again.
    std::chrono::milliseconds listen_every{10'000};
    std::chrono::milliseconds page_every{250};
    /// For a request to arrive whole and its answer to be taken.
    std::chrono::milliseconds request_within{5'000};
    std::size_t connections_max = 64;
  };
  /// All are called by the thread that serves.
  struct Calls {
    std::function<std::string()> page;
    /// It listens now, and this is where.
    std::function<void(const std::string& url)> announce;
    /// What cannot be had or written: once, until it can be again.
    std::function<void(const std::string& why)> say;
  };
  /// Touches neither network nor files yet.
  MetricsServer(Options options, Calls calls);

  /// Until `wake_fd` is readable. Then the file is removed: its figures would be taken for this
  /// hour's.
  void serve(int wake_fd);

 private:
  struct Connection {
    UniqueFd fd;
    io::Deadline deadline;
    std::string request;
    std::string answer;  // empty: the request is not whole yet
    std::size_t sent = 0;
  };
  /// Something that may fail again and again, and is said once.
  struct Attempt {
    io::Deadline due{};
    bool failed = false;
  };

  void listen_if_due();
  [[nodiscard]] Result<std::string> listen();
  void write_file_if_due();
  [[nodiscard]] Status write_file();
  void say_once(Attempt& attempt, const Status& outcome) const;
  void accept_all();
  /// False once the connection is done with.
  bool go_on(Connection& connection);
  const std::string& page();
  [[nodiscard]] io::Deadline next_deadline() const;

  const Options options_;
  const Calls calls_;
  UniqueFd listener_;                  // non-blocking; none as long as the port could not be had
  std::list<Connection> connections_;  // the oldest first
  std::string page_;
  std::optional<io::Deadline> page_until_;
  Attempt listening_, writing_;
  bool file_written_ = false;
};

}  // namespace vmshadow::app
