// What the guard's takeover is made of: the wait between two tries, a monitor held ready, a QEMU
// that is stuck, settings that a dead capture left.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <future>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "capture/back_off.h"
#include "capture/migration_settings.h"
#include "capture/release_vm.h"
#include "qmp/commands.h"
#include "qmp/standby_monitor.h"
#include "support/fake_monitor.h"
#include "support/temp_dir.h"

namespace vmshadow::capture {
namespace {

using qmp::FakeMonitor;
using std::chrono::milliseconds;
using testing::HasSubstr;
using Json = nlohmann::json;

TEST(BackOffTest, DoublesUpToItsMost) {
  BackOff back_off(milliseconds(1000), milliseconds(60'000));
  std::vector<std::int64_t> waits;
  for (int i = 0; i < 8; ++i) waits.push_back(back_off.next().count());
  EXPECT_THAT(waits, testing::ElementsAre(1000, 2000, 4000, 8000, 16'000, 32'000, 60'000, 60'000));
  back_off.reset();
  EXPECT_EQ(back_off.next().count(), 1000);
}

TEST(FreeStuckMonitorTest, CutsTheMigrationOutOfBandWhereNothingIsAnswered) {
  FakeMonitor monitor;
  const auto session = qmp::open_session(monitor);
  auto freed = std::async(std::launch::async, [&] { free_stuck_monitor(*session); });
  EXPECT_EQ(monitor.receive().value("execute", ""), "query-status");  // and no reply
  const Json yank = monitor.receive();
  EXPECT_EQ(yank.value("exec-oob", ""), "yank");
  EXPECT_EQ(yank["arguments"], Json::parse(R"({"instances": [{"type": "migration"}]})"));
  monitor.reply(yank);
  freed.get();
}

TEST(FreeStuckMonitorTest, LeavesOneThatAnswersAlone) {
  FakeMonitor monitor;
  const auto session = qmp::open_session(monitor);
  auto freed = std::async(std::launch::async, [&] { free_stuck_monitor(*session); });
  const Json command = monitor.receive();
  monitor.reply(command, {{"status", "colo"}, {"running", false}});
  freed.get();
  auto next = std::async(std::launch::async, [&] { return qmp::cont(*session); });
  const Json after = monitor.receive();
  EXPECT_EQ(after.value("execute", ""), "cont");  // nothing came in between
  monitor.reply(after);
  EXPECT_TRUE(next.get());
}

/// A monitor at a path, for one client; the test plays its part.
class PlayedMonitor {
 public:
  PlayedMonitor() : listener_(*io::listen_unix(path())) {}
  [[nodiscard]] std::string path() const { return folder_.file("qmp"); }
  /// Greets the client that has connected, and accepts its capabilities; its command.
  Json shake_hands(std::string_view before_greeting = "") {
    auto peer = io::accept_connection(listener_.get(), -1, patience());
    if (!peer || !*peer) throw std::runtime_error("nobody connected");
    peer_ = std::move(**peer);
    if (!before_greeting.empty()) send(before_greeting);
    send(qmp::kGreetingWithOob);
    const Json command = receive();
    send(Json{{"return", Json::object()}, {"id", command["id"]}}.dump() + "\r\n");
    return command;
  }
  void send(std::string_view text) {
    ASSERT_TRUE(io::write_all(peer_.get(), std::as_bytes(std::span(text)), patience()));
  }
  Json receive() {
    for (;;) {
      if (auto message = stream_.next()) return *message;
      std::array<std::byte, 4096> buffer;
      const auto got = io::read_some(peer_.get(), buffer, patience());
      if (!got || *got == 0) throw std::runtime_error("the client is gone");
      if (!stream_.feed(ByteSpan(buffer.data(), *got))) throw std::runtime_error("not JSON");
    }
  }
  void close() { peer_.reset(); }

 private:
  static io::Deadline patience() { return io::deadline_after(std::chrono::seconds(30)); }
  test::TempDir folder_;
  UniqueFd listener_;
  UniqueFd peer_;
  qmp::MessageStream stream_{std::size_t{1} << 20};
};

constexpr std::string_view kStopEvent =
    R"({"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"})"
    "\r\n";

class StandbyMonitorTest : public testing::Test {
 protected:
  StandbyMonitorTest() {
    auto opening = std::async(std::launch::async, [this] {
      return qmp::StandbyMonitor::open(monitor_.path(), std::chrono::seconds(30));
    });
    const Json command = monitor_.shake_hands(kStopEvent);  // meant for the client before
    EXPECT_EQ(command["arguments"]["enable"], Json::array({"oob"}));
    auto opened = opening.get();
    if (!opened) throw std::runtime_error(opened.error().message);
    standby_.emplace(*std::move(opened));
  }
  PlayedMonitor monitor_;
  std::optional<qmp::StandbyMonitor> standby_;
};

TEST_F(StandbyMonitorTest, WakesAsASessionAtOnce) {
  monitor_.send(kStopEvent);
  EXPECT_TRUE(standby_->drain());
  auto session = std::move(*standby_).wake({});
  ASSERT_TRUE(session) << session.error().message;
  EXPECT_TRUE((*session)->has_oob());
  EXPECT_EQ((*session)->version().text(), "7.2.22");
  auto told = std::async(std::launch::async, [&] { return qmp::yank_migration(**session); });
  const Json command = monitor_.receive();
  EXPECT_EQ(command.value("exec-oob", ""), "yank");
  monitor_.send(Json{{"return", Json::object()}, {"id", command["id"]}}.dump() + "\r\n");
  EXPECT_TRUE(told.get());
}

// Woken in the middle of an event, it waits for its rest: a session begins between two messages.
TEST_F(StandbyMonitorTest, WokenInMidEventWaitsForItsEnd) {
  monitor_.send(kStopEvent.substr(0, 20));
  EXPECT_TRUE(standby_->drain());
  auto waking = std::async(std::launch::async, [this] { return std::move(*standby_).wake({}); });
  monitor_.send(kStopEvent.substr(20));
  auto session = waking.get();
  ASSERT_TRUE(session) << session.error().message;
  auto told = std::async(std::launch::async, [&] { return qmp::cont(**session); });
  const Json command = monitor_.receive();
  monitor_.send(Json{{"return", Json::object()}, {"id", command["id"]}}.dump() + "\r\n");
  EXPECT_TRUE(told.get());
}

TEST_F(StandbyMonitorTest, KnowsThatItWasLost) {
  EXPECT_TRUE(standby_->drain());
  monitor_.close();
  EXPECT_FALSE(standby_->drain());
  const auto session = std::move(*standby_).wake({});
  ASSERT_FALSE(session);
  EXPECT_EQ(session.error().code, Errc::closed);
}

TEST(StandbyMonitorOpenTest, RefusesWhatIsNoMonitorOfItsOwn) {
  const test::TempDir folder;
  const auto none = qmp::StandbyMonitor::open(folder.file("none"), milliseconds(10));
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, Errc::not_found);

  const UniqueFd busy = *io::listen_unix(folder.file("busy"));
  const auto silent = qmp::StandbyMonitor::open(folder.file("busy"), milliseconds(10));
  ASSERT_FALSE(silent);
  EXPECT_EQ(silent.error().code, Errc::in_use);
  EXPECT_THAT(silent.error().message, HasSubstr("another client holds this monitor"));
}

/// The settings a QEMU with these parameters is found with.
MigrationSettings read_settings(const Json& parameters, FakeMonitor& monitor,
                                qmp::Session& session) {
  auto reading = std::async(std::launch::async,
                            [&] { return MigrationSettings::read(session, CaptureKind::colo); });
  Json command = monitor.receive();
  EXPECT_EQ(command.value("execute", ""), "query-migrate-capabilities");
  monitor.reply(command, Json::parse(R"([{"capability": "x-colo", "state": true}])"));
  command = monitor.receive();
  EXPECT_EQ(command.value("execute", ""), "query-migrate-parameters");
  monitor.reply(command, parameters);
  auto settings = reading.get();
  if (!settings) throw std::runtime_error(settings.error().message);
  return *settings;
}

// Otherwise the next capture would take them for the operator's and put them back for ever.
TEST(MigrationSettingsTest, WhatADeadCaptureLeftIsNotPutBack) {
  FakeMonitor monitor;
  const auto session = qmp::open_session(monitor);
  const auto left = read_settings({{"max-bandwidth", std::uint64_t{1} << 50},
                                   {"x-checkpoint-delay", kCheckpointDelayMs},
                                   {"downtime-limit", 50}},
                                  monitor, *session);
  EXPECT_TRUE(left.left_by_capture());
  EXPECT_EQ(Json::parse(left.text()), Json::parse(R"({"capabilities": {"x-colo": false},
      "parameters": {"max-bandwidth": 134217728, "x-checkpoint-delay": 20000,
                     "downtime-limit": 300}})"));

  const auto own =
      read_settings({{"max-bandwidth", 5000}, {"x-checkpoint-delay", 7}, {"downtime-limit", 50}},
                    monitor, *session);
  EXPECT_FALSE(own.left_by_capture());
  EXPECT_EQ(Json::parse(own.text())["parameters"], Json::parse(R"({"max-bandwidth": 5000,
      "x-checkpoint-delay": 7, "downtime-limit": 50})"));
}

constexpr std::string_view kGreetingOf11 =
    R"({"QMP": {"version": {"qemu": {"micro": 3, "minor": 1, "major": 11}, "package": ""}, )"
    R"("capabilities": ["oob"]}})"
    "\r\n";

/// What is switched for a capture, of a QEMU that has return-path off and postcopy-ram on.
Json capabilities_for_capture(std::string_view greeting) {
  FakeMonitor monitor;
  const auto session = qmp::open_session(monitor, {}, greeting);
  auto applying = std::async(std::launch::async, [&]() -> Status {
    const auto settings = MigrationSettings::read(*session, CaptureKind::colo);
    return settings ? settings->apply_for_capture(*session) : Status{fail(settings.error())};
  });
  monitor.reply(monitor.receive(), Json::parse(R"([{"capability": "x-colo", "state": false},
      {"capability": "return-path", "state": false}, {"capability": "postcopy-ram", "state": true},
      {"capability": "events", "state": false}])"));
  monitor.reply(monitor.receive(), Json::object());
  const Json set = monitor.receive();
  EXPECT_EQ(set.value("execute", ""), "migrate-set-capabilities");
  monitor.reply(set);
  monitor.reply(monitor.receive());
  EXPECT_TRUE(applying.get());
  return set["arguments"]["capabilities"];
}

TEST(MigrationSettingsTest, SwitchesWhatTheVersionNeeds) {
  EXPECT_EQ(capabilities_for_capture(qmp::kGreetingWithOob),
            Json::parse(R"([{"capability": "postcopy-ram", "state": false},
                            {"capability": "x-colo", "state": true}])"));
  EXPECT_EQ(capabilities_for_capture(kGreetingOf11),
            Json::parse(R"([{"capability": "postcopy-ram", "state": false},
                            {"capability": "return-path", "state": true},
                            {"capability": "x-colo", "state": true}])"));
}

}  // namespace
}  // namespace vmshadow::capture
