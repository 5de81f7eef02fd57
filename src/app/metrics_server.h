// Gives a page of metrics to whoever asks: over HTTP, and as a file that is replaced again and
// again (for node_exporter's textfile collector).
//
// One thread, a fixed number of connections, each with a deadline. Where they are all taken a new
// one replaces the oldest, so peers that connect and say nothing never keep a scraper out; and the
// page is made anew at most every `page_every`, however many ask.
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
    UniqueFd listener;  ///< non-blocking; none: only the file
    std::string file;   ///< empty: none
    std::chrono::milliseconds file_every{10'000};
    std::chrono::milliseconds page_every{250};
    /// For a request to arrive whole and its answer to be taken.
    std::chrono::milliseconds request_within{5'000};
    std::size_t connections_max = 64;
  };
  /// What of it cannot be written goes to `say`, once until it can be again.
  MetricsServer(Options options, std::function<std::string()> page,
                std::function<void(const std::string&)> say);

  /// Until `wake_fd` is readable; -1: for ever.
  void serve(int wake_fd);
  /// The file, now.
  [[nodiscard]] Status write_file();

 private:
  struct Connection {
    UniqueFd fd;
    io::Deadline deadline;
    std::string request;
    std::string answer;  // empty: the request is not whole yet
    std::size_t sent = 0;
  };

  void accept_all();
  /// False once the connection is done with.
  bool go_on(Connection& connection);
  const std::string& page();
  void write_file_if_due();
  [[nodiscard]] io::Deadline next_deadline() const;

  const Options options_;
  const std::function<std::string()> make_page_;
  const std::function<void(const std::string&)> say_;
  std::list<Connection> connections_;  // the oldest first
  std::string page_;
  std::optional<io::Deadline> page_until_;
  io::Deadline write_file_at_{};
  bool file_failed_ = false;
};

}  // namespace vmshadow::app
