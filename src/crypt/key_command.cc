#include "crypt/key_command.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string_view>

#include "base/unique_fd.h"

namespace vmshadow::crypt {
namespace {

using Clock = std::chrono::steady_clock;

/// posix_spawn's two lists, freed when they go.
struct SpawnPlan {
  posix_spawn_file_actions_t files{};
  posix_spawnattr_t attributes{};
  SpawnPlan() {
    ::posix_spawn_file_actions_init(&files);
    ::posix_spawnattr_init(&attributes);
  }
  ~SpawnPlan() {
    ::posix_spawn_file_actions_destroy(&files);
    ::posix_spawnattr_destroy(&attributes);
  }
  SpawnPlan(const SpawnPlan&) = delete;
  SpawnPlan& operator=(const SpawnPlan&) = delete;
};

/// A process group of its own, that it can be ended with all it started; signals as usual.
void plan(SpawnPlan& spawn, int output) {
  ::posix_spawn_file_actions_addopen(&spawn.files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_adddup2(&spawn.files, output, STDOUT_FILENO);
  sigset_t none;
  ::sigemptyset(&none);
  sigset_t restored;
  ::sigemptyset(&restored);
  ::sigaddset(&restored, SIGPIPE);
  ::sigaddset(&restored, SIGXFSZ);
  ::posix_spawnattr_setsigmask(&spawn.attributes, &none);
  ::posix_spawnattr_setsigdefault(&spawn.attributes, &restored);
  ::posix_spawnattr_setpgroup(&spawn.attributes, 0);
  ::posix_spawnattr_setflags(
      &spawn.attributes,
      static_cast<short>(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP));
}

Result<pid_t> start(const std::string& command, const std::string& vm_name, int output) {
  SpawnPlan spawn;
  plan(spawn, output);
  std::vector<std::string> words = {"sh", "-c", command + " \"$@\"", "sh", vm_name};
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  constexpr std::string_view name = "VMSHADOW_VM=";
  std::string setting = std::string(name) + vm_name;
  std::vector<char*> environment = {setting.data()};
  for (char** entry = environ; *entry != nullptr; ++entry) {
    if (!std::string_view(*entry).starts_with(name)) environment.push_back(*entry);
  }
  environment.push_back(nullptr);
  pid_t pid = -1;
  const int error = ::posix_spawn(&pid, "/bin/sh", &spawn.files, &spawn.attributes, argv.data(),
                                  environment.data());
  if (error != 0) return fail_errno(error, "starting /bin/sh");
  return pid;
}

/// Everything up to the end of `fd`.
Status read_output(int fd, Clock::time_point deadline, SecretText& text) {
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
    if (left.count() <= 0) return fail(Errc::timed_out, "it does not come to an end");
    pollfd ready{fd, POLLIN, 0};
    const int polled = ::poll(&ready, 1, static_cast<int>(left.count()));
    if (polled < 0 && errno != EINTR) return fail_errno(errno, "waiting for what it prints");
    if (polled <= 0) continue;
    if (text.room().empty()) return fail(Errc::invalid_argument, "it prints more than keys");
    const ssize_t got = ::read(fd, text.room().data(), text.room().size());
    if (got < 0 && errno != EINTR) return fail_errno(errno, "reading what it prints");
    if (got == 0) return {};
    if (got > 0) text.add(static_cast<std::size_t>(got));
  }
}

/// Waits for the shell; at the deadline ends it and what it started.
int reap(pid_t pid, Clock::time_point deadline) {
  constexpr int pause_ms = 5;
  int status = 0;
  while (::waitpid(pid, &status, WNOHANG) == 0) {
    if (Clock::now() >= deadline) ::kill(-pid, SIGKILL);
    ::poll(nullptr, 0, pause_ms);
  }
  return status;
}

}  // namespace

Result<std::vector<SecretKey>> KeyCommand::keys_of(const std::string& vm_name) const {
  const auto refused = [&](Error error) {
    return fail(std::move(error).with_context(fmt::format("the key command for VM '{}'", vm_name)));
  };
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return fail_errno(errno, "making a pipe");
  const UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  const auto pid = start(command_, vm_name, write_end.get());
  if (!pid) return refused(pid.error());
  write_end.reset();
  const auto deadline = Clock::now() + patience_;
  SecretText text;
  const Status read = read_output(read_end.get(), deadline, text);
  const int status = reap(*pid, read ? deadline : Clock::now());
  if (!read) return refused(read.error());
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return refused(
        {Errc::not_found, WIFEXITED(status)
                              ? fmt::format("it failed with status {}", WEXITSTATUS(status))
                              : fmt::format("it was ended by signal {}", WTERMSIG(status))});
  }
  auto keys = parse_keys(text.text());
  if (!keys) return refused(std::move(keys).error());
  return keys;
}

}  // namespace vmshadow::crypt
