#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "qmp/commands.h"
#include "qmp/session.h"
#include "support/fake_monitor.h"

namespace vmshadow::qmp {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

void expect_error(const Error& error, Errc code, std::string_view words) {
  EXPECT_EQ(errc_name(error.code), errc_name(code)) << error.message;
  EXPECT_THAT(error.message, HasSubstr(std::string(words)));
}

/// What adopt() says to a server that sends `text` and then closes or stays silent.
Error opening_error(std::string_view text, bool then_close) {
  FakeMonitor monitor;
  SessionOptions options;
  options.greeting_timeout = milliseconds(then_close ? 30'000 : text.empty() ? 50 : 1000);
  monitor.send(text);  // before the session begins, so that no clock decides what it sees
  auto opening = adopt_async(monitor, options);
  if (then_close) monitor.close();
  auto session = opening.get();
  EXPECT_FALSE(session);
  return session ? Error{} : session.error();
}

TEST(QmpGreetingTest, GivesVersionAndEnablesOob) {
  FakeMonitor monitor;
  auto opening = adopt_async(monitor);
  monitor.send(kGreetingWithOob);
  const Json command = monitor.receive();
  EXPECT_EQ(command["execute"], "qmp_capabilities");
  EXPECT_EQ(command["arguments"]["enable"], Json::array({"oob"}));
  EXPECT_TRUE(command["id"].is_string());
  monitor.reply(command);
  const auto session = opening.get();
  ASSERT_TRUE(session);
  EXPECT_EQ((*session)->version().text(), "7.2.22");
  EXPECT_EQ((*session)->version().package, "Debian");
  EXPECT_TRUE((*session)->has_oob());
  EXPECT_FALSE((*session)->closed());
  EXPECT_EQ(*(*session)->peer_pid(), ::getpid());
}

TEST(QmpGreetingTest, DoesNotAskForOobThatIsNotOffered) {
  FakeMonitor monitor;
  auto opening = adopt_async(monitor);
  monitor.send(kGreetingWithoutOob);
  const Json command = monitor.receive();
  EXPECT_FALSE(command.contains("arguments"));
  monitor.reply(command);
  const auto session = opening.get();
  ASSERT_TRUE(session);
  EXPECT_FALSE((*session)->has_oob());
  const auto oob = (*session)->execute_oob("yank", Json::object());
  ASSERT_FALSE(oob);
  expect_error(oob.error(), Errc::unsupported,
               "'yank': this monitor takes no commands out of band");
}

TEST(QmpGreetingTest, SilenceMeansThatAnotherClientHoldsTheMonitor) {
  expect_error(opening_error("", false), Errc::in_use,
               "vm1's monitor: no greeting within 50 ms: another client holds the monitor");
}

TEST(QmpGreetingTest, OtherServersAreNotQmp) {
  for (const std::string_view text :
       {"QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ",
        "HTTP/1.1 408 Request Timeout\r\n\r\n", "\x16\x03\x01\x02", "{\"hello\": \"world\"}\n",
        "{\"QMP\": {}}", "{\"QMP\": {\"version\": {\"qemu\": {\"major\": \"7\"}}}}",
        "{\"QMP\": {\"version\": {\"qemu\": {\"major\": -7, \"minor\": 1, \"micro\": 1}}}}",
        "{\"return\": {}}"}) {
    expect_error(opening_error(text, false), Errc::protocol, "not a QMP monitor");
  }
  expect_error(opening_error("(qemu) ", false), Errc::protocol, "'(qemu) '");
}

// QEMU has the next client already while its main thread still speaks to the one before.
TEST(QmpGreetingTest, WhatTheClientBeforeWasToldIsPassedOver) {
  FakeMonitor monitor;
  std::atomic<int> events{0};
  SessionOptions options;
  options.on_event = [&](const Event&) { ++events; };
  auto opening = adopt_async(monitor, options);
  monitor.send(R"({"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"})"
               "\r\n"
               R"({"return": {}, "id": "libvirt-7"})"
               "\r\n"
               R"({"error": {"class": "GenericError", "desc": "no"}, "id": "libvirt-8"})"
               "\r\n");
  monitor.send(kGreetingWithOob);
  monitor.reply(monitor.receive());
  const auto session = opening.get();
  ASSERT_TRUE(session) << session.error().message;
  EXPECT_EQ(events, 0);
}

TEST(QmpGreetingTest, HalfAGreetingIsNotQmpEither) {
  expect_error(opening_error("{\"QMP\": {\"vers", false), Errc::protocol, "its greeting broke off");
}

TEST(QmpGreetingTest, ClosedBeforeOrWithinTheGreeting) {
  expect_error(opening_error("", true), Errc::closed, "closed the monitor's connection");
  expect_error(opening_error("{\"QMP\": {", true), Errc::closed, "closed the monitor's connection");
}

TEST(QmpGreetingTest, ClosedWithinTheNegotiation) {
  FakeMonitor monitor;
  auto opening = adopt_async(monitor);
  monitor.send(kGreetingWithOob);
  monitor.receive();
  monitor.close();
  const auto session = opening.get();
  ASSERT_FALSE(session);
  expect_error(session.error(), Errc::closed, "closed the monitor's connection");
}

TEST(QmpGreetingTest, ARefusedNegotiationFails) {
  FakeMonitor monitor;
  auto opening = adopt_async(monitor);
  monitor.send(kGreetingWithOob);
  const Json command = monitor.receive();
  monitor.send(
      Json{{"error", {{"class", "GenericError"}, {"desc", "not today"}}}, {"id", command["id"]}}
          .dump());
  const auto session = opening.get();
  ASSERT_FALSE(session);
  expect_error(session.error(), Errc::invalid_argument,
               "'qmp_capabilities': QEMU refused: not today");
}

TEST(QmpConnectTest, NamesThePathAndTheRemedy) {
  const std::string folder = testing::TempDir();
  const auto none = Session::connect(folder + "/no-such-monitor");
  ASSERT_FALSE(none);
  expect_error(none.error(), Errc::not_found, folder + "/no-such-monitor");
  EXPECT_THAT(none.error().message, HasSubstr("-qmp unix:PATH"));

  const std::string stale = folder + "/stale-monitor-" + std::to_string(::getpid());
  ASSERT_TRUE(io::listen_unix(stale));
  const auto ended = Session::connect(stale);
  ASSERT_FALSE(ended);
  expect_error(ended.error(), Errc::closed, "no QEMU listens there");
  if (::geteuid() != 0) {
    ::chmod(stale.c_str(), 0);
    const auto denied = Session::connect(stale);
    ASSERT_FALSE(denied);
    expect_error(denied.error(), Errc::permission, "run as the user that QEMU runs as");
  }
  ::unlink(stale.c_str());
}

TEST(QmpExecuteTest, RepliesAreMatchedById) {
  FakeMonitor monitor;
  const auto session = open_session(monitor);
  ASSERT_TRUE(session);
  auto first = std::async([&] { return session->execute("query-first"); });
  const Json first_command = monitor.receive();
  auto second = std::async([&] { return session->execute("query-second", {{"n", 2}}); });
  const Json second_command = monitor.receive();
  EXPECT_EQ(second_command["arguments"], (Json{{"n", 2}}));
  monitor.reply(second_command, "second");
  monitor.reply(first_command, "first");
  EXPECT_EQ(*first.get(), "first");
  EXPECT_EQ(*second.get(), "second");
}

TEST(QmpExecuteTest, RefusalsBecomeErrors) {
  FakeMonitor monitor;
  const auto session = open_session(monitor);
  ASSERT_TRUE(session);
  const auto refuse_with = [&](const Json& error) {
    auto call = std::async([&] { return session->execute("x-foo"); });
    const Json command = monitor.receive();
    monitor.send(Json{{"error", error}, {"id", command["id"]}}.dump());
    return call.get().error();
  };
  expect_error(refuse_with({{"class", "CommandNotFound"}, {"desc", "has not been found"}}),
               Errc::unsupported, "vm1's monitor: 'x-foo': QEMU refused: has not been found");
  expect_error(refuse_with({{"class", "GenericError"}, {"desc", "no"}}), Errc::invalid_argument,
               "'x-foo': QEMU refused: no");
  expect_error(refuse_with(Json("?")), Errc::invalid_argument, "it gave no reason");
  expect_error(refuse_with({{"class", "GenericError"}, {"desc", "caf\u00e9 \x1b[2J\n"}}),
               Errc::invalid_argument, "refused: caf\u00e9 .[2J.");
  EXPECT_FALSE(session->closed());
}

TEST(QmpExecuteTest, DisksThatCannotBeReadAreNotNoDisks) {
  FakeMonitor monitor;
  const auto session = open_session(monitor);
  ASSERT_TRUE(session);
  for (const Json& result : {Json("nonsense"), Json::object(), Json::array({"nonsense"})}) {
    auto call = std::async([&] { return query_writable_disks(*session); });
    monitor.reply(monitor.receive(), result);
    const auto disks = call.get();
    ASSERT_FALSE(disks) << result;
    expect_error(disks.error(), Errc::protocol, "'query-block' is not of the documented form");
  }
}

TEST(QmpExecuteTest, BlockJobsThatCannotBeReadAreNotNoBlockJobs) {
  FakeMonitor monitor;
  const auto session = open_session(monitor);
  ASSERT_TRUE(session);
  const auto ask = [&](const Json& result) {
    auto call = std::async([&] { return query_block_jobs(*session); });
    monitor.reply(monitor.receive(), result);
    return call.get();
  };
  for (const Json& result : {Json("nonsense"), Json::object(), Json::array({"nonsense"})}) {
    const auto jobs = ask(result);
    ASSERT_FALSE(jobs) << result;
    expect_error(jobs.error(), Errc::protocol, "'query-block-jobs' is not of the documented form");
  }
  const auto jobs = ask(Json::array({{{"type", "backup"}, {"device", "drive0"}},
                                     {{"type", "mirror"},
                                      {"device", "drive1"},
                                      {"ready", true},
                                      {"offset", 4096},
                                      {"len", 8192}}}));
  ASSERT_TRUE(jobs) << jobs.error().message;
  ASSERT_EQ(jobs->size(), 2u);
  EXPECT_EQ(jobs->at(0).id, "drive0");
  EXPECT_FALSE(jobs->at(0).ready);
  EXPECT_EQ(jobs->at(1).id, "drive1");
  EXPECT_TRUE(jobs->at(1).ready);
  EXPECT_EQ(jobs->at(1).done, 4096u);
  EXPECT_EQ(jobs->at(1).total, 8192u);
}

TEST(QmpExecuteTest, ALateReplyIsDropped) {
  FakeMonitor monitor;
  const auto session = open_session(monitor);
  ASSERT_TRUE(session);
  const auto late = session->execute("query-slow", Json::object(), milliseconds(10));
  ASSERT_FALSE(late);
  expect_error(late.error(), Errc::timed_out, "'query-slow': no reply in time");
  const Json slow = monitor.receive();
  auto call = std::async([&] { return session->execute("query-next"); });
  const Json next = monitor.receive();
  monitor.reply(slow, "slow");
  monitor.reply(next, "next");
  EXPECT_EQ(*call.get(), "next");
  EXPECT_FALSE(session->closed());
}

TEST(QmpExecuteTest, AtMostSevenCommandsAreInFlightAndOobStillPasses) {
  FakeMonitor monitor;
  const auto session = open_session(monitor);
  ASSERT_TRUE(session);
  std::vector<Json> in_flight;
  for (int i = 0; i < 7; ++i) {
    EXPECT_FALSE(session->execute("query-slow", Json::object(), milliseconds(1)));
    in_flight.push_back(monitor.receive());
  }
  // Given up on, but QEMU still has them.
  const auto eighth = session->execute("query-status", Json::object(), milliseconds(10));
  ASSERT_FALSE(eighth);
  expect_error(eighth.error(), Errc::timed_out, "'query-status': not sent: QEMU has not answered");

  auto waiting = std::async([&] { return session->execute("query-status"); });
  auto oob = std::async([&] {
    return session->execute_oob("yank", {{"instances", Json::array()}});
  });
  const Json yank = monitor.receive();
  EXPECT_EQ(yank["exec-oob"], "yank");
  EXPECT_FALSE(yank.contains("execute"));
  monitor.reply(yank);
  EXPECT_TRUE(oob.get());
  monitor.reply(in_flight.front());
  const Json status = monitor.receive();
  EXPECT_EQ(status["execute"], "query-status");
  monitor.reply(status, "done");
  EXPECT_EQ(*waiting.get(), "done");
}

TEST(QmpExecuteTest, ManyThreadsEachGetTheirOwnReply) {
  FakeMonitor monitor;
  const auto session = open_session(monitor);
  ASSERT_TRUE(session);
  constexpr int kThreads = 16;
  constexpr int kCalls = 50;
  std::atomic<int> right = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kCalls; ++i) {
        const auto reply = session->execute("echo", {{"n", t * kCalls + i}});
        if (reply && *reply == t * kCalls + i) ++right;
      }
    });
  }
  // Answers in pairs, the later one first, while two threads are there to ask; the last one alone
  // has a single command in flight.
  std::vector<int> unanswered(kThreads, kCalls);
  const auto answer = [&](const Json& command) {
    const int n = command["arguments"]["n"];
    --unanswered[static_cast<std::size_t>(n / kCalls)];
    monitor.reply(command, n);
  };
  bool all_came = true;
  while (const auto asking = kThreads - std::count(unanswered.begin(), unanswered.end(), 0)) {
    const Json one = monitor.receive();
    const Json two = asking > 1 ? monitor.receive() : Json::object();
    all_came = one.is_object() && two.is_object();
    if (!all_came) break;
    if (!two.empty()) answer(two);
    answer(one);
  }
  if (!all_came) monitor.close();  // releases the threads
  for (auto& thread : threads) thread.join();
  EXPECT_TRUE(all_came);
  EXPECT_EQ(right, kThreads * kCalls);
}

TEST(QmpExecuteTest, AnArgumentThatIsNotUtf8IsTheCallersError) {
  FakeMonitor monitor;
  const auto session = open_session(monitor);
  ASSERT_TRUE(session);
  const auto reply = session->execute("pmemsave", {{"filename", "/tmp/\xff"}});
  ASSERT_FALSE(reply);
  expect_error(reply.error(), Errc::invalid_argument, "not UTF-8");
  EXPECT_FALSE(session->closed());
}

TEST(QmpExecuteTest, ACloseFailsAllCallersWithTheSameReason) {
  FakeMonitor monitor;
  const auto session = open_session(monitor);
  ASSERT_TRUE(session);
  std::vector<std::future<Result<Json>>> calls;
  for (int i = 0; i < 10; ++i)
    calls.push_back(std::async([&] { return session->execute("stop"); }));
  for (int i = 0; i < 7; ++i) monitor.receive();
  monitor.close();
  std::string reason;
  for (auto& call : calls) {
    const auto reply = call.get();
    ASSERT_FALSE(reply);
    expect_error(reply.error(), Errc::closed, "QEMU closed the monitor's connection");
    if (reason.empty()) reason = reply.error().message;
    EXPECT_EQ(reply.error().message, reason);
  }
  ASSERT_TRUE(session->closed());
  EXPECT_EQ(session->closed()->message, reason);
  EXPECT_EQ(session->execute("stop").error().message, reason);
}

TEST(QmpExecuteTest, AReplyBeforeTheCloseStillCounts) {
  FakeMonitor monitor;
  const auto session = open_session(monitor);
  ASSERT_TRUE(session);
  auto call = std::async([&] { return session->execute("quit"); });
  monitor.reply(monitor.receive(), "bye");
  monitor.close();
  EXPECT_EQ(*call.get(), "bye");
}

/// How a session ends that receives `text` while a command waits.
Error broken_by(std::string_view text, SessionOptions options = {}) {
  FakeMonitor monitor;
  const auto session = open_session(monitor, std::move(options));
  if (!session) return Error{};
  auto call = std::async([&] { return session->execute("query-status"); });
  monitor.receive();
  monitor.send(text);
  const auto reply = call.get();
  EXPECT_FALSE(reply);
  EXPECT_TRUE(session->closed());
  return reply ? Error{} : reply.error();
}

TEST(QmpProtocolTest, WhatQemuNeverSendsEndsTheSession) {
  expect_error(broken_by("garbage\n"), Errc::protocol, "broke the monitor's protocol: 'garbage.'");
  expect_error(broken_by("{\"return\": {}, \"id\": \"999\"}"), Errc::protocol,
               "answered '999', which was not asked");
  expect_error(broken_by("{\"return\": {}, \"id\": \"1\"}"), Errc::protocol, "answered '1'");
  expect_error(broken_by("{\"return\": {}, \"id\": \"2x\"}"), Errc::protocol, "answered '2x'");
  expect_error(broken_by("{\"return\": {}, \"id\": 2}"), Errc::protocol, "a reply without an id");
  expect_error(broken_by("{\"error\": {\"desc\": \"JSON parse error\"}}"), Errc::protocol,
               "a reply without an id (JSON parse error)");
  expect_error(broken_by("{\"id\": \"2\"}"), Errc::protocol, "no reply and no event");
  expect_error(broken_by("{\"event\": \"STOP\"}"), Errc::protocol, "malformed event 'STOP'");
  expect_error(broken_by(R"({"event": "E", "timestamp": {"seconds": 1e18, "microseconds": 0}})"),
               Errc::protocol, "malformed event 'E'");
  expect_error(
      broken_by(
          R"({"event": "E", "timestamp": {"seconds": 9223372036854775807, "microseconds": 0}})"),
      Errc::protocol, "malformed event 'E'");
  expect_error(broken_by("{\"return\": " + std::string(2000, '[')), Errc::protocol,
               "nested over 1024 levels deep");
}

TEST(QmpProtocolTest, AMessageOverTheLimitEndsTheSession) {
  SessionOptions options;
  options.message_bytes_max = 100'000;
  expect_error(broken_by("{\"return\": \"" + std::string(150'000, 'x'), options), Errc::protocol,
               "a message is longer than 100000 bytes");
}

struct SeenEvent {
  std::string name;
  Json data;
  std::int64_t micros;
};

TEST(QmpEventTest, EventsReachTheHandlerInOrderAmongReplies) {
  std::mutex mutex;
  std::vector<SeenEvent> seen;
  SessionOptions options;
  options.on_event = [&](const Event& event) {
    const std::lock_guard lock(mutex);
    seen.push_back({event.name, event.data, event.stamp.count()});
  };
  FakeMonitor monitor;
  const auto session = open_session(monitor, options);
  ASSERT_TRUE(session);
  auto call = std::async([&] { return session->execute("cont"); });
  const Json command = monitor.receive();
  monitor.send(
      R"({"timestamp": {"seconds": 1795404760, "microseconds": 841798}, "event": "RESUME"})"
      "\r\n"
      R"({"timestamp": {"seconds": -1, "microseconds": -1}, "event": "X_NEVER_HEARD_OF",)"
      R"( "data": {"deep": [1]}, "extra": null})");
  monitor.reply(command);
  ASSERT_TRUE(call.get());
  const std::lock_guard lock(mutex);
  ASSERT_EQ(seen.size(), 2u);
  EXPECT_EQ(seen[0].name, "RESUME");
  EXPECT_EQ(seen[0].data, Json::object());
  EXPECT_EQ(seen[0].micros, 1795404760841798);
  EXPECT_EQ(seen[1].name, "X_NEVER_HEARD_OF");
  EXPECT_EQ(seen[1].data, (Json{{"deep", {1}}}));
}

/// Receives one command and the descriptor that came with its bytes (-1 if none).
UniqueFd receive_fd(int fd, std::string& text) {
  EXPECT_TRUE(io::wait_for(fd, POLLIN, io::deadline_after(std::chrono::seconds(30))));
  char buffer[4096];
  iovec part{buffer, sizeof buffer};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t got = ::recvmsg(fd, &message, 0);
  if (got > 0) text.assign(buffer, static_cast<std::size_t>(got));
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header == nullptr || header->cmsg_type != SCM_RIGHTS) return UniqueFd();
  int passed = -1;
  std::memcpy(&passed, CMSG_DATA(header), sizeof passed);
  return UniqueFd(passed);
}

TEST(QmpFdTest, TheDescriptorTravelsWithItsCommand) {
  FakeMonitor monitor;
  const auto session = open_session(monitor);
  ASSERT_TRUE(session);
  auto pair = io::socket_pair();
  ASSERT_TRUE(pair);
  auto call = std::async([&] {
    return session->execute_with_fd("getfd", {{"fdname", "a"}}, pair->first.get());
  });
  std::string text;
  const UniqueFd passed = receive_fd(monitor.fd(), text);
  ASSERT_TRUE(passed);
  const Json command = Json::parse(text);
  EXPECT_EQ(command["execute"], "getfd");
  EXPECT_EQ(command["arguments"]["fdname"], "a");
  struct stat ours {
  }, theirs{};
  ASSERT_EQ(::fstat(pair->first.get(), &ours), 0);
  ASSERT_EQ(::fstat(passed.get(), &theirs), 0);
  EXPECT_EQ(ours.st_ino, theirs.st_ino);
  monitor.reply(command);
  EXPECT_TRUE(call.get());
}

TEST(QmpFdTest, OneDescriptorIsUnderWayAtATime) {
  FakeMonitor monitor;
  const auto session = open_session(monitor);
  ASSERT_TRUE(session);
  auto pair = io::socket_pair();
  ASSERT_TRUE(pair);
  auto first = std::async([&] {
    return session->execute_with_fd("getfd", {{"fdname", "a"}}, pair->first.get());
  });
  std::string text;
  ASSERT_TRUE(receive_fd(monitor.fd(), text));
  const Json first_command = Json::parse(text);
  auto second = std::async([&] {
    return session->execute_with_fd("getfd", {{"fdname", "b"}}, pair->second.get());
  });
  auto plain = std::async([&] { return session->execute("query-status"); });
  const Json plain_command = monitor.receive();
  EXPECT_EQ(plain_command["execute"], "query-status");
  monitor.reply(plain_command);
  monitor.reply(first_command);
  ASSERT_TRUE(receive_fd(monitor.fd(), text));
  EXPECT_EQ(Json::parse(text)["arguments"]["fdname"], "b");
  monitor.reply(Json::parse(text));
  EXPECT_TRUE(first.get());
  EXPECT_TRUE(second.get());
  EXPECT_TRUE(plain.get());
}

TEST(QmpEndTest, AServerThatStopsReadingTimesTheCallerOut) {
  FakeMonitor monitor;
  const auto session = open_session(monitor);
  ASSERT_TRUE(session);
  io::set_socket_buffers(monitor.fd(), 4096);
  const auto reply =
      session->execute("big", {{"text", std::string(8 << 20, 'x')}}, milliseconds(50));
  ASSERT_FALSE(reply);
  expect_error(reply.error(), Errc::timed_out, "QEMU does not read its monitor");
  EXPECT_TRUE(session->closed());
}

TEST(QmpEndTest, DestructionDoesNotWaitForTheServer) {
  {
    FakeMonitor monitor;
    const auto session = open_session(monitor);
    monitor.send("{\"half\": ");
  }
  {
    FakeMonitor monitor;
    const auto session = open_session(monitor);
    EXPECT_FALSE(session->execute("query-slow", Json::object(), milliseconds(1)));
  }
  {
    FakeMonitor monitor;
    const auto session = open_session(monitor);
    monitor.close();
  }
}

// QEMU answers a command of a client that has died to the one that comes next.
TEST(QmpSessionTest, DropsTheReplyToTheClientBefore) {
  FakeMonitor monitor;
  SessionOptions options;
  options.id_prefix = "77.1-";
  const auto session = open_session(monitor, std::move(options));
  ASSERT_TRUE(session);
  auto asked = std::async(std::launch::async, [&] { return session->execute("query-status"); });
  const auto command = monitor.receive();
  EXPECT_EQ(command["id"].get<std::string>().rfind("77.1-", 0), 0U);
  monitor.send("{\"return\": {\"whose\": \"not ours\"}, \"id\": \"2\"}\r\n");
  monitor.send("{\"return\": {\"whose\": \"not ours\"}, \"id\": \"76.1-2\"}\r\n");
  monitor.reply(command, {{"whose", "ours"}});
  const auto reply = asked.get();
  ASSERT_TRUE(reply) << reply.error().message;
  EXPECT_EQ(reply->at("whose"), "ours");
  EXPECT_FALSE(session->closed());
}

}  // namespace
}  // namespace vmshadow::qmp
