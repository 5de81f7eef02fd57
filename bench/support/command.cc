#include "support/command.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <sstream>

namespace vmshadow::bench {

std::optional<std::string> find_program(const std::string& name) {
  const char* path = std::getenv("PATH");
  std::istringstream directories(path == nullptr ? "" : path);
  std::string directory;
  while (std::getline(directories, directory, ':')) {
    std::string candidate = directory + "/" + name;
    if (::access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return std::nullopt;
}

Result<ChildProgram> ChildProgram::start(const std::vector<std::string>& argv) {
  std::vector<char*> arguments;
  for (const std::string& word : argv) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return fail_errno(errno, "making a pipe");
  UniqueFd ours(ends[0]);
  const UniqueFd theirs(ends[1]);
  const pid_t pid = ::fork();
  if (pid < 0) return fail_errno(errno, "starting " + argv.front());
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::dup2(theirs.get(), STDOUT_FILENO);
    ::execvp(arguments.front(), arguments.data());
    ::_exit(127);
  }
  return ChildProgram(pid, std::move(ours));
}

ChildProgram::ChildProgram(ChildProgram&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      output_(std::move(other.output_)),
      buffer_(std::move(other.buffer_)) {}

ChildProgram::~ChildProgram() { kill(); }

Result<bool> ChildProgram::fill() {
  std::array<char, 65536> chunk;
  for (;;) {
    const ssize_t got = ::read(output_.get(), chunk.data(), chunk.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno(errno, "reading a program's output");
    buffer_.append(chunk.data(), static_cast<std::size_t>(got));
    return got > 0;
  }
}

Result<std::string> ChildProgram::read_line() {
  for (;;) {
    if (const auto end = buffer_.find('\n'); end != std::string::npos) {
      std::string line = buffer_.substr(0, end);
      buffer_.erase(0, end + 1);
      return line;
    }
    VMSHADOW_ASSIGN(const bool more, fill());
    if (!more) return fail(Errc::closed, "a program that was started ended");
  }
}

Result<std::string> ChildProgram::read_all() {
  for (;;) {
    VMSHADOW_ASSIGN(const bool more, fill());
    if (!more) return std::move(buffer_);
  }
}

int ChildProgram::wait() {
  const pid_t pid = std::exchange(pid_, -1);
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void ChildProgram::kill() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  static_cast<void>(wait());
}

Result<std::string> run_program(const std::vector<std::string>& argv) {
  VMSHADOW_ASSIGN(ChildProgram program, ChildProgram::start(argv));
  VMSHADOW_ASSIGN(std::string output, program.read_all());
  const int code = program.wait();
  if (code != 0) {
    return fail(Errc::io,
                fmt::format("{} failed with exit code {} (see above)", argv.front(), code));
  }
  return output;
}

}  // namespace vmshadow::bench
