#include "support/guest_shell.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>

namespace vmshadow::test {

Result<std::string> run_in_shell(Console& console, const std::string& command,
                                 io::Deadline deadline) {
  // The echo shows "$((…))", only the output shows the number: the two cannot be confused.
  // A number is never used twice: a guest restored to a moment within an older command may still
  // print that command's marks.
  static std::atomic<int> commands{0};
  const int number = ++commands;
  const std::size_t from = console.size();
  VMSHADOW_TRY(console.send(
      fmt::format("echo BEGIN$(({}+0)); {}; echo END$(({}+0)):$?:\n", number, command, number)));
  const std::string begin_mark = fmt::format("BEGIN{}\r\n", number);
  const std::string end_mark = fmt::format("END{}:", number);
  VMSHADOW_ASSIGN(const std::size_t begin, console.wait_for(begin_mark, from, deadline));
  VMSHADOW_ASSIGN(const std::size_t end, console.wait_for(end_mark, begin, deadline));
  VMSHADOW_ASSIGN(const std::size_t status_end, console.wait_for(":", end, deadline));
  const std::string raw = console.raw();
  std::string output = raw.substr(begin, end - end_mark.size() - begin);
  output.erase(std::remove(output.begin(), output.end(), '\r'), output.end());
  const std::string status = raw.substr(end, status_end - 1 - end);
  if (status != "0") {
    return fail(Errc::invalid_argument,
                fmt::format("'{}' ended with status {}:\n{}", command, status, output));
  }
  return output;
}

}  // namespace vmshadow::test
