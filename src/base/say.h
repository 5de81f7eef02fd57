// One sentence of a program to its operator.
#pragma once

#include <string_view>

namespace vmshadow {

/// Writes `line` and a newline to `fd`, at once. Never fails and never waits: a terminal that was
/// closed, or a reader that takes nothing just now, must not end or hold a program that has a VM in
/// its care; the line is then dropped.
void write_line(int fd, std::string_view line);

/// Writes the line "PROGRAM: SENTENCE" on stderr, as write_line() does.
void say(std::string_view program, std::string_view sentence);

}  // namespace vmshadow
