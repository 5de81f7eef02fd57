// The harness itself: processes end when they must, consoles lose nothing.
#include <gtest/gtest.h>
#include <signal.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "support/console.h"
#include "support/process.h"
#include "support/temp_dir.h"

namespace vmshadow::test {
namespace {

using std::chrono::seconds;

io::Deadline soon() { return io::deadline_after(seconds(30)); }

Result<Process> shell(const std::string& script, ProcessOptions options = {}) {
  options.argv = {"sh", "-c", script};
  return Process::spawn(options);
}

TEST(Process, ReportsHowItEnded) {
  auto exits = shell("exit 3");
  ASSERT_TRUE(exits);
  const auto status = exits->wait(soon());
  ASSERT_TRUE(status);
  EXPECT_EQ(*status, (ExitStatus{3, 0}));
  EXPECT_EQ(status->text(), "exit code 3");
  EXPECT_FALSE(exits->running());
  EXPECT_EQ(exits->signal(SIGTERM).error().code, Errc::not_found);

  auto killed = shell("kill -TERM $$; exec sleep 60");
  ASSERT_TRUE(killed);
  EXPECT_EQ(killed->wait(soon())->text(), "signal 15");
}

TEST(Process, AMissingProgramIsKnownAtOnce) {
  const auto none = Process::spawn({.argv = {"/nonexistent/program"}});
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, Errc::not_found);
  EXPECT_NE(none.error().message.find("starting /nonexistent/program"), std::string::npos);
  EXPECT_EQ(Process::spawn({}).error().code, Errc::invalid_argument);
}

TEST(Process, WaitHasADeadline) {
  auto sleeps = shell("exec sleep 600");
  ASSERT_TRUE(sleeps);
  const auto status = sleeps->wait(io::deadline_after(std::chrono::milliseconds(20)));
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, Errc::timed_out);
  EXPECT_TRUE(sleeps->running());
  ASSERT_TRUE(sleeps->cpu_time());
  sleeps->kill();
  EXPECT_EQ(sleeps->wait(soon())->signal, SIGKILL);
}

TEST(Process, ItsDestructorKills) {
  pid_t pid = 0;
  {
    auto sleeps = shell("exec sleep 600");
    ASSERT_TRUE(sleeps);
    pid = sleeps->pid();
    EXPECT_EQ(::kill(pid, 0), 0);
  }
  EXPECT_NE(::kill(pid, 0), 0);
}

TEST(Process, OutputAndEnvironment) {
  const TempDir directory;
  ProcessOptions options;
  options.env = {"VMSHADOW_TEST_WORD=new", "HOME=/elsewhere"};
  options.stdout_file = options.stderr_file = directory.file("out");
  auto echo = shell("echo $VMSHADOW_TEST_WORD $HOME; echo to-stderr >&2", options);
  ASSERT_TRUE(echo);
  ASSERT_TRUE(echo->wait(soon()));
  std::ifstream file(directory.file("out"));
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  EXPECT_EQ(text, "new /elsewhere\nto-stderr\n");
}

TEST(Process, OutputThroughAPipe) {
  auto echo = shell("echo word", {.stdout_pipe = true});
  ASSERT_TRUE(echo);
  char text[16] = {};
  EXPECT_EQ(::read(echo->stdout_fd(), text, sizeof text), 5);
  EXPECT_STREQ(text, "word\n");
}

TEST(TempDir, Disappears) {
  std::string path;
  {
    const TempDir directory;
    path = directory.path();
    std::ofstream(directory.file("x")) << "y";
    EXPECT_TRUE(std::filesystem::exists(path + "/x"));
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

struct ConnectedConsole {
  ConnectedConsole() : console(*Console::listen(directory.file("console"))) {
    auto connected = io::connect_unix(directory.file("console"), soon());
    EXPECT_TRUE(connected);
    guest = *std::move(connected);
  }
  void print(std::string_view text) const {
    EXPECT_TRUE(io::write_all(guest.get(), std::as_bytes(std::span(text)), soon()));
  }
  TempDir directory;
  std::unique_ptr<Console> console;
  UniqueFd guest;
};

TEST(Console, CutsLinesAndKeepsRawBytes) {
  ConnectedConsole c;
  const auto before = system_clock().monotonic();
  c.print("one\r\ntw");
  ASSERT_TRUE(c.console->wait_for("tw", 0, soon()));
  c.print("o\n\nrest");
  ASSERT_TRUE(c.console->wait_for("rest", 0, soon()));
  const auto lines = c.console->lines();
  ASSERT_EQ(lines.size(), 3U);
  EXPECT_EQ(lines[0].text, "one");
  EXPECT_EQ(lines[1].text, "two");
  EXPECT_EQ(lines[1].offset, 5U);
  EXPECT_EQ(lines[2].text, "");
  EXPECT_LE(before, lines[0].stamp);
  EXPECT_LE(lines[0].stamp, lines[1].stamp);
  EXPECT_EQ(c.console->raw(), "one\r\ntwo\n\nrest");
  EXPECT_EQ(c.console->chardev("c0"),
            "socket,id=c0,path=" + c.directory.file("console") + ",server=off");
}

TEST(Console, WaitsFromAnOffset) {
  ConnectedConsole c;
  c.print("prompt> ");
  const auto first = c.console->wait_for("> ", 0, soon());
  ASSERT_TRUE(first);
  EXPECT_EQ(*first, 8U);
  const auto again =
      c.console->wait_for("> ", *first, io::deadline_after(std::chrono::milliseconds(20)));
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code, Errc::timed_out);
  EXPECT_NE(again.error().message.find("without '> '"), std::string::npos);
  EXPECT_NE(again.error().message.find("prompt>"), std::string::npos);
}

TEST(Console, AClosedGuestEndsTheWait) {
  ConnectedConsole c;
  c.print("last words");
  c.guest.reset();
  const auto waited = c.console->wait_for_lines(1, soon());
  ASSERT_FALSE(waited);
  EXPECT_EQ(waited.error().code, Errc::closed);
  EXPECT_NE(waited.error().message.find("last words"), std::string::npos);
  EXPECT_TRUE(c.console->closed());
}

TEST(Console, TypesIntoTheGuest) {
  ConnectedConsole c;
  c.print("$");
  ASSERT_TRUE(c.console->wait_for("$", 0, soon()));
  ASSERT_TRUE(c.console->send("ls\n"));
  std::array<std::byte, 3> typed;
  ASSERT_TRUE(io::read_exact(c.guest.get(), typed, soon()));
  EXPECT_EQ(std::memcmp(typed.data(), "ls\n", 3), 0);
}

TEST(Console, NobodyConnected) {
  const TempDir directory;
  const auto console = *Console::listen(directory.file("console"));
  EXPECT_EQ(console->send("x").error().code, Errc::closed);
}

TEST(Console, FollowsAFile) {
  const TempDir directory;
  const auto console = Console::follow(directory.file("log"));
  std::ofstream file(directory.file("log"));
  file << "a line\n" << std::flush;
  ASSERT_TRUE(console->wait_for_lines(1, soon()));
  file << "another\n" << std::flush;
  ASSERT_TRUE(console->wait_for("another\n", 0, soon()));
  EXPECT_EQ(console->lines()[1].text, "another");
}

}  // namespace
}  // namespace vmshadow::test
