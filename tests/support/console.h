// What a guest prints, with the host's time of arrival.
//
// For sockets the test listens and QEMU connects (`server=off`), before the guest's first
// instruction: no byte is lost, nor any of a restored guest's. A reader thread takes what comes,
// stamps it and cuts it into lines. All members are safe from any thread.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <vmshadow/clock.h>
#include <vmshadow/result.h>

#include "base/unique_fd.h"
#include "io/socket.h"

namespace vmshadow::test {

struct ConsoleLine {
  std::string text;      ///< without the line end ("\n" or "\r\n")
  MonotonicTime stamp;   ///< when the chunk with its last byte arrived
  std::size_t offset{};  ///< of its first byte in raw()
};

class Console {
 public:
  /// Listens on a unix socket at `path` for one connection.
  [[nodiscard]] static Result<std::unique_ptr<Console>> listen(const std::string& path);
  /// Follows a file that grows (and may not exist yet); stamps are as fine as the poll, 1 ms.
  [[nodiscard]] static std::unique_ptr<Console> follow(const std::string& path);
  ~Console();
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  /// QEMU's -chardev argument that leads here. Only for listen().
  [[nodiscard]] std::string chardev(const std::string& id) const;

  [[nodiscard]] std::string raw() const;
  [[nodiscard]] std::size_t size() const;
  /// Complete lines, oldest first.
  [[nodiscard]] std::vector<ConsoleLine> lines() const;
  /// Whether the other end has gone.
  [[nodiscard]] bool closed() const;

  /// Waits for `text` at or behind offset `from`; the offset behind it. Errc::timed_out and
  /// Errc::closed show what came last.
  [[nodiscard]] Result<std::size_t> wait_for(std::string_view text, std::size_t from,
                                             io::Deadline deadline) const;
  /// Waits until there are at least `count` complete lines.
  [[nodiscard]] Status wait_for_lines(std::size_t count, io::Deadline deadline) const;
  /// Types into the guest's serial port. Only for listen().
  [[nodiscard]] Status send(std::string_view text);

 private:
  explicit Console(std::string path) : path_(std::move(path)) {}
  void read_socket();
  void read_file();
  void take(std::string_view chunk);
  void close();
  template <class Ready>
  Status wait_until(const std::string& what, io::Deadline deadline, Ready ready) const;

  std::string path_;
  UniqueFd listener_;
  UniqueFd stop_;  // eventfd: readable once the console is being destroyed
  std::thread reader_;

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  UniqueFd peer_;
  std::string raw_;
  std::vector<ConsoleLine> lines_;
  std::size_t line_start_ = 0;
  bool closed_ = false;
};

}  // namespace vmshadow::test
