#include "support/qmp_scripts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>

#include "io/socket.h"
#include "qmp/commands.h"

namespace vmshadow::test {
namespace {

using qmp::Json;
using qmp::Session;
using std::chrono::seconds;
using testing::AnyOf;
using testing::Contains;
using testing::HasSubstr;

constexpr seconds kPatience{30};

// COLO's messages.
constexpr std::uint32_t kReady = 0, kRequest = 1, kReply = 2, kReceived = 5, kLoaded = 6;

/// `newer`: how a newer QEMU says it, if otherwise.
template <class T>
void expect_refused(const Result<T>& result, Errc code, const std::string& words,
                    const std::string& newer = {}) {
  ASSERT_FALSE(result) << words;
  EXPECT_EQ(errc_name(result.error().code), errc_name(code)) << result.error().message;
  EXPECT_THAT(result.error().message,
              AnyOf(HasSubstr(words), HasSubstr(newer.empty() ? words : newer)));
}

template <class T>
void expect_done(const Result<T>& result) {
  EXPECT_TRUE(result) << result.error().message;
}

void expect_state(Session& session, bool running, const std::string& text) {
  const auto state = qmp::query_status(session);
  ASSERT_TRUE(state) << state.error().message;
  EXPECT_EQ(state->running, running);
  EXPECT_EQ(state->text, text);
}

void expect_migration(Session& session, const std::string& status, bool active) {
  const auto info = qmp::query_migrate(session);
  ASSERT_TRUE(info) << info.error().message;
  EXPECT_EQ(info->status, status);
  EXPECT_EQ(info->active(), active);
}

void facts(Session& session, EventLog&, bool) {
  EXPECT_TRUE(session.has_oob());
  expect_state(session, true, "running");
  expect_migration(session, "none", false);
  const auto commands = qmp::query_commands(session);
  ASSERT_TRUE(commands) << commands.error().message;
  EXPECT_THAT(*commands, Contains("x-colo-lost-heartbeat"));
  EXPECT_THAT(*commands, Contains("query-status"));
  const auto machine = qmp::query_machine(session);
  ASSERT_TRUE(machine) << machine.error().message;
  EXPECT_EQ(machine->qemu_version, session.version().text());
  EXPECT_THAT(machine->machine_type, HasSubstr("pc-i440fx-"));
  EXPECT_FALSE(machine->kvm);
  EXPECT_EQ(machine->ram_bytes, 16u << 20);
  EXPECT_EQ(machine->uuid, kScriptUuid);
  EXPECT_EQ(machine->name, "script");
  const auto disks = qmp::query_writable_disks(session);
  ASSERT_TRUE(disks) << disks.error().message;
  // A device with its own id is known by the path of what stands behind it.
  ASSERT_EQ(disks->size(), 1u);
  EXPECT_THAT(disks->front().name, HasSubstr("writable"));
  EXPECT_FALSE(disks->front().node.empty());
  EXPECT_GT(disks->front().bytes, 0u);
  const auto obstacles = qmp::find_obstacles(session);
  ASSERT_TRUE(obstacles) << obstacles.error().message;
  EXPECT_TRUE(obstacles->empty());
  expect_done(qmp::pmemsave(session, 0, 4096, "/dev/null"));
}

void settings(Session& session, EventLog&, bool) {
  const auto before = qmp::query_migrate_capabilities(session);
  ASSERT_TRUE(before) << before.error().message;
  ASSERT_TRUE(before->contains("x-colo") && before->contains("events"));
  EXPECT_FALSE(before->at("events"));
  expect_done(qmp::migrate_set_capabilities(session, {{"events", true}, {"xbzrle", false}}));
  const auto after = qmp::query_migrate_capabilities(session);
  ASSERT_TRUE(after) << after.error().message;
  EXPECT_TRUE(after->at("events"));
  EXPECT_EQ(after->size(), before->size());
  expect_done(qmp::migrate_set_parameters(
      session, {{"max-bandwidth", 123456789}, {"x-checkpoint-delay", 4294967295}}));
  const auto parameters = qmp::query_migrate_parameters(session);
  ASSERT_TRUE(parameters) << parameters.error().message;
  EXPECT_EQ(parameters->at("max-bandwidth"), 123456789);
  EXPECT_EQ(parameters->at("x-checkpoint-delay"), 4294967295);
}

void run_control(Session& session, EventLog& events, bool) {
  expect_done(qmp::stop(session));
  EXPECT_TRUE(events.wait_for("STOP"));
  expect_state(session, false, "paused");
  expect_done(qmp::cont(session));
  EXPECT_TRUE(events.wait_for("RESUME"));
  expect_state(session, true, "running");
  expect_done(session.execute_oob("yank", {{"instances", Json::array()}}));
  expect_done(qmp::quit(session));
  EXPECT_TRUE(events.wait_for("SHUTDOWN"));
  const auto deadline = io::deadline_after(kPatience);
  while (!session.closed() && io::Deadline::clock::now() < deadline) ::poll(nullptr, 0, 1);
  ASSERT_TRUE(session.closed());
  EXPECT_EQ(session.closed()->code, Errc::closed) << session.closed()->message;
}

void refusals(Session& session, EventLog&, bool) {
  const auto invalid = Errc::invalid_argument;
  expect_refused(session.execute("no-such-command"), Errc::unsupported,
                 "QEMU refused: The command");
  expect_refused(session.execute("getfd", {{"fdname", "a"}}), invalid, "file descriptor");
  expect_refused(qmp::closefd(session, "unknown"), invalid, "'unknown' not found");
  expect_refused(qmp::migrate(session, "bogus"), invalid, "migration protocol");
  expect_refused(qmp::migrate_incoming(session, "defer"), invalid, "-incoming");
  expect_refused(qmp::colo_lost_heartbeat(session), invalid, "'colo' is not enabled",
                 "not in COLO mode");
  expect_refused(qmp::migrate_set_parameters(session, {{"x-checkpoint-delay", -1}}), invalid,
                 "x-checkpoint-delay");
  expect_refused(qmp::migrate_set_capabilities(session, {{"x-warp", true}}), invalid, "x-warp");
  expect_refused(qmp::pmemsave(session, 0, 4096, "/nonexistent/file"), invalid,
                 "/nonexistent/file");
  expect_refused(session.execute_oob("query-status", Json::object()), invalid, "OOB");
  EXPECT_FALSE(session.closed());
  expect_state(session, true, "running");
}

void cancel(Session& session, EventLog& events, bool) {
  auto pair = io::socket_pair();
  ASSERT_TRUE(pair);
  expect_done(qmp::getfd(session, "unused", pair->first.get()));
  expect_done(qmp::closefd(session, "unused"));
  expect_done(qmp::getfd(session, "slow", pair->first.get()));
  expect_done(qmp::migrate_set_capabilities(session, {{"events", true}}));
  expect_done(qmp::migrate_set_parameters(session, {{"max-bandwidth", 1024}}));
  expect_done(qmp::migrate(session, "fd:slow"));
  ASSERT_TRUE(events.wait_for("MIGRATION", "active"));
  expect_migration(session, "active", true);
  expect_done(qmp::migrate_cancel(session));
  ASSERT_TRUE(events.wait_for("MIGRATION", "cancelled"));
  expect_migration(session, "cancelled", false);
}

void colo(Session& session, EventLog& events, bool live) {
  auto pair = io::socket_pair();
  ASSERT_TRUE(pair);
  ColoPeer peer(std::move(pair->first), live);
  expect_done(qmp::getfd(session, "colo", pair->second.get()));
  pair->second.reset();
  expect_done(qmp::migrate_set_capabilities(
      session, {{"events", true}, {"return-path", false}, {"x-colo", true}}));
  // One checkpoint comes when it is asked for, none before.
  const Json pace = {{"max-bandwidth", std::uint64_t{1} << 40}, {"x-checkpoint-delay", 4294967295}};
  expect_done(qmp::migrate_set_parameters(session, pace));
  expect_done(qmp::migrate(session, "fd:colo"));
  ASSERT_TRUE(events.wait_for("MIGRATION", "colo"));
  expect_migration(session, "colo", true);
  ASSERT_TRUE(events.wait_for("STOP"));
  // The VM stands still until its peer is ready.
  peer.send(kReady);
  ASSERT_TRUE(events.wait_for("RESUME"));
  expect_state(session, true, "running");

  expect_done(qmp::migrate_set_parameters(session, pace));
  ASSERT_TRUE(peer.wait_for(kRequest));
  expect_state(session, true, "running");
  peer.send(kReply);
  ASSERT_TRUE(events.wait_for("STOP"));
  expect_state(session, false, "colo");
  peer.send(kReceived);
  peer.send(kLoaded);
  ASSERT_TRUE(events.wait_for("RESUME"));
  expect_state(session, true, "running");

  expect_done(qmp::colo_lost_heartbeat(session));
  // In either order: a heartbeat lost right after the VM was resumed finds QEMU's checkpoint thread
  // at its very end, and then the exit comes first, with the reason "error".
  ASSERT_TRUE(events.wait_for("MIGRATION", "completed"));
  ASSERT_TRUE(events.wait_for("COLO_EXIT"));
  ASSERT_TRUE(events.wait_for("RESUME"));
  expect_migration(session, "completed", false);
  expect_state(session, true, "running");
}

}  // namespace

qmp::EventHandler EventLog::handler() {
  return [this](const qmp::Event& event) {
    {
      const std::lock_guard lock(mutex_);
      events_.emplace_back(event.name, event.data);
    }
    came_.notify_all();
  };
}

bool EventLog::wait_for(const std::string& name, const std::string& status) {
  std::unique_lock lock(mutex_);
  return came_.wait_until(lock, io::deadline_after(kPatience), [&] {
    const auto found = std::find_if(events_.begin(), events_.end(), [&](const auto& event) {
      return event.first == name && (status.empty() || event.second.value("status", "") == status);
    });
    if (found == events_.end()) return false;
    events_.erase(found);
    return true;
  });
}

ColoPeer::ColoPeer(UniqueFd fd, bool live) : fd_(std::move(fd)), live_(live) {
  if (live_) reader_ = std::thread([this] { drain(); });
}

ColoPeer::~ColoPeer() {
  ::shutdown(fd_.get(), SHUT_RDWR);
  if (reader_.joinable()) reader_.join();
}

void ColoPeer::drain() {
  std::array<std::byte, 64 * 1024> buffer;
  for (;;) {
    const auto got = io::read_some(fd_.get(), buffer, io::kNoDeadline);
    if (!got || *got == 0) return;
    {
      const std::lock_guard lock(mutex_);
      for (std::size_t i = 0; i < *got; ++i) {
        tail_ = tail_ << 8 | std::to_integer<std::uint32_t>(buffer[i]);
      }
    }
    came_.notify_all();
  }
}

void ColoPeer::send(std::uint32_t message) {
  if (!live_) return;
  const std::array<std::byte, 4> bytes = {std::byte{0}, std::byte{0}, std::byte{0},
                                          static_cast<std::byte>(message)};
  expect_done(io::write_all(fd_.get(), bytes, io::deadline_after(kPatience)));
}

bool ColoPeer::wait_for(std::uint32_t message) {
  if (!live_) return true;
  std::unique_lock lock(mutex_);
  return came_.wait_until(lock, io::deadline_after(kPatience), [&] { return tail_ == message; });
}

const std::vector<QmpScript>& qmp_scripts() {
  static const std::vector<QmpScript> scripts = {
      {"facts", facts},       {"settings", settings}, {"run_control", run_control},
      {"refusals", refusals}, {"cancel", cancel},     {"colo", colo},
  };
  return scripts;
}

std::vector<std::string> script_machine() {
  return {"qemu-system-x86_64",
          "-nodefaults",
          "-display",
          "none",
          "-machine",
          "pc,accel=tcg",
          "-m",
          "16",
          "-name",
          "script",
          "-uuid",
          kScriptUuid,
          "-blockdev",
          "null-co,node-name=n0,size=1048576",
          "-device",
          "virtio-blk-pci,drive=n0,id=writable",
          "-blockdev",
          "null-co,node-name=n1,size=1048576,read-only=on",
          "-device",
          "virtio-blk-pci,drive=n1,id=readonly"};
}

}  // namespace vmshadow::test
