// The monitor's client against a real QEMU, which needs no guest: the firmware running is enough.
// With VMSHADOW_RECORD_TRANSCRIPTS=DIR the scripts' conversations are written to DIR/NAME.jsonl.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <iterator>
#include <optional>

#include "io/socket.h"
#include "qmp/commands.h"
#include "qmp/session.h"
#include "support/prerequisite.h"
#include "support/process.h"
#include "support/qemu_guest.h"
#include "support/qmp_scripts.h"
#include "support/qmp_transcript.h"
#include "support/temp_dir.h"

namespace vmshadow::test {
namespace {

using qmp::Session;
using qmp::SessionOptions;
using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;

void expect_error(const Error& error, Errc code, const std::string& words) {
  EXPECT_EQ(errc_name(error.code), errc_name(code)) << error.message;
  EXPECT_THAT(error.message, HasSubstr(words));
}

/// A running QEMU with a QMP monitor "qmp" and a human one, "hmp".
class Qemu {
 public:
  [[nodiscard]] Status start(const std::vector<std::string>& more = {}) {
    ProcessOptions options;
    options.argv = script_machine();
    options.argv.insert(options.argv.end(),
                        {"-qmp", "unix:" + path("qmp") + ",server=on,wait=off", "-chardev",
                         "socket,id=h,path=" + path("hmp") + ",server=on,wait=off", "-mon",
                         "chardev=h,mode=readline"});
    options.argv.insert(options.argv.end(), more.begin(), more.end());
    // Under TCG a checkpoint may lock QEMU up; see tests/support/guest/tcg_shim.c.
    options.env = {"LD_PRELOAD=" + tcg_shim_path()};
    options.stdout_file = options.stderr_file = path("messages");
    VMSHADOW_ASSIGN(Process process, Process::spawn(options));
    process_.emplace(std::move(process));
    const auto deadline = io::deadline_after(seconds(20));
    while (::access(path("qmp").c_str(), F_OK) != 0 || ::access(path("hmp").c_str(), F_OK) != 0) {
      if (!process_->running() || io::Deadline::clock::now() >= deadline) {
        std::ifstream said(path("messages"));
        return fail(Errc::closed,
                    "QEMU did not start: " + std::string(std::istreambuf_iterator<char>(said), {}));
      }
      ::poll(nullptr, 0, 2);
    }
    return {};
  }
  [[nodiscard]] std::string path(const std::string& name) const { return directory_.file(name); }
  [[nodiscard]] Process& process() { return *process_; }

 private:
  TempDir directory_;
  std::optional<Process> process_;  // ends before its directory goes
};

/// Only a missing program is a lack; a QEMU that does not start is a failure.
Status qemu_installed() {
  ProcessOptions options;
  options.argv = {script_machine().front(), "--version"};
  options.stdout_file = "/dev/null";
  auto process = Process::spawn(options);
  if (!process) return fail(process.error().code, process.error().message + ": install QEMU");
  VMSHADOW_TRY(process->wait(io::deadline_after(seconds(20))));
  return {};
}

class QmpE2eTest : public testing::Test {
 protected:
  void SetUp() override { VMSHADOW_REQUIRE(qemu_installed()); }

  void start(const std::vector<std::string>& more = {}) {
    const auto started = qemu_.start(more);
    ASSERT_TRUE(started) << started.error().message;
  }
  std::unique_ptr<Session> connect(SessionOptions options = {}) {
    auto session = Session::connect(qemu_.path("qmp"), std::move(options));
    EXPECT_TRUE(session) << session.error().message;
    return session ? *std::move(session) : nullptr;
  }
  Qemu qemu_;
};

class QmpScriptE2eTest : public QmpE2eTest, public testing::WithParamInterface<QmpScript> {};

TEST_P(QmpScriptE2eTest, RunsAgainstQemu) {
  ASSERT_NO_FATAL_FAILURE(start());
  EventLog events;
  SessionOptions options;
  options.on_event = events.handler();
  const char* directory = std::getenv("VMSHADOW_RECORD_TRANSCRIPTS");
  if (directory == nullptr) {
    const auto session = connect(options);
    ASSERT_TRUE(session);
    GetParam().run(*session, events, true);
    return;
  }
  auto monitor = io::connect_unix(qemu_.path("qmp"), io::deadline_after(seconds(20)));
  ASSERT_TRUE(monitor) << monitor.error().message;
  TranscriptRecorder recorder(*std::move(monitor));
  {
    const auto session = Session::adopt(recorder.take_client(), "the recorder", options);
    ASSERT_TRUE(session) << session.error().message;
    GetParam().run(**session, events, true);
  }
  const auto written = recorder.finish(std::string(directory) + "/" + GetParam().name + ".jsonl");
  EXPECT_TRUE(written) << written.error().message;
}

INSTANTIATE_TEST_SUITE_P(Scripts, QmpScriptE2eTest, testing::ValuesIn(qmp_scripts()),
                         [](const auto& instance) { return instance.param.name; });

TEST_F(QmpE2eTest, TheHandshakeSaysWhoIsThere) {
  ASSERT_NO_FATAL_FAILURE(start());
  const auto session = connect();
  ASSERT_TRUE(session);
  EXPECT_TRUE(session->has_oob());
  EXPECT_GE(session->version().major, 5);
  EXPECT_EQ(session->peer_pid().value_or(-1), qemu_.process().pid());
}

/// Whether process `pid` holds the file that is `fd` here.
bool holds(pid_t pid, int fd) {
  struct stat ours {};
  if (::fstat(fd, &ours) != 0) return false;
  std::error_code error;
  for (std::filesystem::directory_iterator entry("/proc/" + std::to_string(pid) + "/fd", error),
       end;
       !error && entry != end; entry.increment(error)) {
    struct stat theirs {};
    if (::stat(entry->path().c_str(), &theirs) == 0 && theirs.st_ino == ours.st_ino &&
        theirs.st_dev == ours.st_dev) {
      return true;
    }
  }
  return false;
}

TEST_F(QmpE2eTest, ADescriptorArrivesAndIsGivenBack) {
  ASSERT_NO_FATAL_FAILURE(start());
  const auto session = connect();
  ASSERT_TRUE(session);
  auto pair = io::socket_pair();
  ASSERT_TRUE(pair);
  EXPECT_FALSE(holds(qemu_.process().pid(), pair->first.get()));
  ASSERT_TRUE(qmp::getfd(*session, "a", pair->first.get()));
  EXPECT_TRUE(holds(qemu_.process().pid(), pair->first.get()));
  ASSERT_TRUE(qmp::closefd(*session, "a"));
  EXPECT_FALSE(holds(qemu_.process().pid(), pair->first.get()));
}

TEST_F(QmpE2eTest, AMonitorHeldByAnotherClientIsInUse) {
  ASSERT_NO_FATAL_FAILURE(start());
  auto holder = connect();
  ASSERT_TRUE(holder);
  SessionOptions options;
  options.greeting_timeout = milliseconds(300);
  const auto second = Session::connect(qemu_.path("qmp"), options);
  ASSERT_FALSE(second);
  expect_error(second.error(), Errc::in_use, "another client holds the monitor");
  expect_error(second.error(), Errc::in_use, qemu_.path("qmp"));
  EXPECT_TRUE(qmp::query_status(*holder));
  holder.reset();
  EXPECT_TRUE(connect());
}

TEST_F(QmpE2eTest, AHumanMonitorIsNoQmpMonitor) {
  ASSERT_NO_FATAL_FAILURE(start());
  const auto session = Session::connect(qemu_.path("hmp"));
  ASSERT_FALSE(session);
  expect_error(session.error(), Errc::protocol, "not a QMP monitor");
  expect_error(session.error(), Errc::protocol, "mode=control");
}

TEST_F(QmpE2eTest, AMonitorOfNobodyNamesTheRemedy) {
  const auto session = Session::connect(qemu_.path("qmp"));
  ASSERT_FALSE(session);
  expect_error(session.error(), Errc::not_found, "start the VM's QEMU with -qmp");
}

TEST_F(QmpE2eTest, AStandbyTakesAnIncomingMigration) {
  ASSERT_NO_FATAL_FAILURE(start({"-incoming", "defer"}));
  const auto session = connect();
  ASSERT_TRUE(session);
  const auto listening = qmp::migrate_incoming(*session, "unix:" + qemu_.path("incoming"));
  ASSERT_TRUE(listening) << listening.error().message;
  EXPECT_TRUE(io::connect_unix(qemu_.path("incoming"), io::deadline_after(seconds(20))));
}

/// The reply's time-out is far away: only the end of the connection can end the call.
TEST_F(QmpE2eTest, AKilledQemuEndsAWaitingCommandAtOnce) {
  ASSERT_NO_FATAL_FAILURE(start());
  SessionOptions options;
  options.reply_timeout = std::chrono::hours(1);
  const auto session = connect(options);
  ASSERT_TRUE(session);
  ASSERT_TRUE(qemu_.process().signal(SIGSTOP));
  auto call = std::async(std::launch::async, [&] { return session->execute("query-status"); });
  EXPECT_EQ(call.wait_for(milliseconds(100)), std::future_status::timeout);
  qemu_.process().kill();
  ASSERT_EQ(call.wait_for(seconds(30)), std::future_status::ready);
  const auto reply = call.get();
  ASSERT_FALSE(reply);
  expect_error(reply.error(), Errc::closed, "QEMU closed the monitor's connection");
  ASSERT_TRUE(session->closed());
  EXPECT_EQ(session->closed()->message, reply.error().message);
}

}  // namespace
}  // namespace vmshadow::test
