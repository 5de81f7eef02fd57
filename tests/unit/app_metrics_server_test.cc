// How metrics are served: what a request gets, and what peers that stall, flood or drip cannot do.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <list>
#include <span>
#include <string>

#include "app/metrics_http.h"
#include "app/metrics_options.h"
#include "app/metrics_process.h"
#include "app/metrics_thread.h"
#include "base/shared_memory.h"
#include "io/socket.h"
#include "support/temp_dir.h"

namespace vmshadow::app {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

constexpr const char* kRequest = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";
constexpr const char* kPage = "x_total 1\n";

std::string answer(const std::string& request) {
  return answer_scrape(request, [] { return std::string(kPage); }).value_or("nothing yet");
}

TEST(MetricsHttp, AScrapeGetsThePage) {
  for (const char* request :
       {kRequest, "GET /metrics?x=y HTTP/1.0\r\n\r\n", "GET /metrics HTTP/1.1\n\n"}) {
    const std::string got = answer(request);
    EXPECT_THAT(got, StartsWith("HTTP/1.1 200 OK\r\n")) << request;
    EXPECT_THAT(got, HasSubstr("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    EXPECT_THAT(got, HasSubstr("\r\nContent-Length: 10\r\n"));
    EXPECT_THAT(got, HasSubstr("\r\nConnection: close\r\n"));
    EXPECT_THAT(got, EndsWith("\r\n\r\nx_total 1\n"));
  }
  EXPECT_THAT(answer("HEAD /metrics HTTP/1.1\r\n\r\n"), EndsWith("Connection: close\r\n\r\n"));
}

TEST(MetricsHttp, AllElseGetsAnError) {
  EXPECT_THAT(answer("GET / HTTP/1.1\r\n\r\n"), StartsWith("HTTP/1.1 404 "));
  EXPECT_THAT(answer("GET /metricsx HTTP/1.1\r\n\r\n"), StartsWith("HTTP/1.1 404 "));
  EXPECT_THAT(answer("POST /metrics HTTP/1.1\r\n\r\n"), StartsWith("HTTP/1.1 405 "));
  for (const char* request : {"\r\n\r\n", "GET\r\n\r\n", "GET /metrics\r\n\r\n",
                              "GET /metrics HTTP/2\r\n\r\n", "\x16\x03\x01\n\n"}) {
    EXPECT_THAT(answer(request), StartsWith("HTTP/1.1 400 ")) << request;
  }
  EXPECT_THAT(answer(std::string(kHttpRequestBytesMax, 'x')), StartsWith("HTTP/1.1 431 "));
}

TEST(MetricsHttp, ARequestIsAnsweredOnceItIsWhole) {
  const std::string request = kRequest;
  for (std::size_t bytes = 0; bytes < request.size(); ++bytes) {
    EXPECT_EQ(answer(request.substr(0, bytes)), "nothing yet") << bytes;
  }
}

class MetricsServerTest : public testing::Test {
 protected:
  void start(MetricsServer::Options options = {}) {
    options.listener = listen();
    auto started = MetricsThread::start(
        std::move(options),
        [this] {
          ++pages_;
          return std::string(kPage);
        },
        [this](const std::string& why) { said_.push_back(why); });
    ASSERT_TRUE(started) << started.error().message;
    thread_ = *std::move(started);
  }
  UniqueFd listen() {
    auto listener = io::listen_tcp({"127.0.0.1", 0}).value();
    port_ = io::local_port(listener.get()).value();
    return listener;
  }
  [[nodiscard]] UniqueFd connect() const {
    return io::connect_tcp({"127.0.0.1", port_}, patience()).value();
  }
  static io::Deadline patience() { return io::deadline_after(seconds(30)); }
  static void send(int fd, std::string_view text) {
    static_cast<void>(io::write_all(fd, std::as_bytes(std::span(text)), patience()));
  }
  /// All that comes until the peer closes.
  static std::string read_all(int fd) {
    std::string all;
    std::array<char, 4096> piece;
    for (;;) {
      const auto got = io::read_some(fd, std::as_writable_bytes(std::span(piece)), patience());
      if (!got || *got == 0) return all;
      all.append(piece.data(), *got);
    }
  }
  [[nodiscard]] std::string scrape() const {
    const UniqueFd fd = connect();
    send(fd.get(), kRequest);
    return read_all(fd.get());
  }

  std::uint16_t port_ = 0;
  std::atomic<int> pages_ = 0;
  std::vector<std::string> said_;  // read once the thread has ended
  std::unique_ptr<MetricsThread> thread_;
};

TEST_F(MetricsServerTest, ScrapesAreAnsweredOneAfterTheOther) {
  start();
  for (int i = 0; i < 20; ++i) EXPECT_THAT(scrape(), EndsWith(kPage));
}

// As many as a server has places for, and more: each new peer gets the oldest one's place.
TEST_F(MetricsServerTest, PeersThatSayNothingKeepNobodyOut) {
  MetricsServer::Options options;
  options.connections_max = 8;
  options.request_within = std::chrono::minutes(10);
  start(std::move(options));
  std::list<UniqueFd> silent;
  for (int i = 0; i < 50; ++i) silent.push_back(connect());
  EXPECT_THAT(scrape(), EndsWith(kPage));
  for (int i = 0; i < 20; ++i) silent.push_back(connect());
  EXPECT_THAT(scrape(), EndsWith(kPage));
  // The first ones were shown out.
  EXPECT_EQ(read_all(silent.front().get()), "");
}

TEST_F(MetricsServerTest, APeerThatIsTooSlowIsShownOut) {
  MetricsServer::Options options;
  options.request_within = milliseconds(100);
  start(std::move(options));
  const UniqueFd slow = connect();
  send(slow.get(), "GET /metrics");
  EXPECT_EQ(read_all(slow.get()), "");
}

TEST_F(MetricsServerTest, ARequestMayComeByteByByte) {
  start();
  const UniqueFd fd = connect();
  for (const char* c = kRequest; *c != '\0'; ++c) send(fd.get(), {c, 1});
  EXPECT_THAT(read_all(fd.get()), EndsWith(kPage));
}

TEST_F(MetricsServerTest, HoweverManyAskThePageIsMadeSeldom) {
  MetricsServer::Options options;
  options.page_every = std::chrono::minutes(10);
  start(std::move(options));
  for (int i = 0; i < 100; ++i) EXPECT_THAT(scrape(), EndsWith(kPage));
  EXPECT_EQ(pages_, 1);
}

TEST_F(MetricsServerTest, TheFileIsWholeAtAnyTimeAndGoesWithTheServer) {
  const test::TempDir folder;
  const std::string path = folder.file("vm.prom");
  MetricsServer::Options options;
  options.file = path;
  options.file_every = milliseconds(1);
  start(std::move(options));
  for (int i = 0; i < 200; ++i) {
    std::ifstream file(path);
    ASSERT_EQ(std::string(std::istreambuf_iterator<char>(file), {}), kPage);
  }
  thread_.reset();
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  EXPECT_TRUE(said_.empty());
}

TEST_F(MetricsServerTest, AFileThatCannotBeWrittenIsKnownAtTheStart) {
  MetricsServer::Options options;
  options.file = "/nowhere/vm.prom";
  const auto started = MetricsThread::start(
      std::move(options), [] { return std::string(kPage); }, [](const std::string&) {});
  ASSERT_FALSE(started);
  EXPECT_THAT(started.error().message, HasSubstr("writing the metrics file '/nowhere/vm.prom'"));
}

TEST_F(MetricsServerTest, AFileThatCannotBeWrittenAnyMoreIsSaidOnce) {
  const test::TempDir folder;
  std::filesystem::create_directory(folder.file("sub"));
  MetricsServer::Options options;
  options.file = folder.file("sub/vm.prom");
  options.file_every = milliseconds(1);
  options.page_every = milliseconds(0);
  start(std::move(options));
  // Until none is made anew between its being emptied and its removal.
  std::error_code ignored;
  while (std::filesystem::exists(folder.file("sub"))) {
    std::filesystem::remove_all(folder.file("sub"), ignored);
  }
  const int before = pages_;
  const auto deadline = patience();
  while (pages_ < before + 5 && io::Deadline::clock::now() < deadline) {
    EXPECT_THAT(scrape(), EndsWith(kPage));
  }
  // A new file is tried every millisecond; a page is made for a scrape as well.
  ::poll(nullptr, 0, 50);
  thread_.reset();
  ASSERT_EQ(said_.size(), 1U);
  EXPECT_THAT(said_.front(), HasSubstr("No such file or directory"));
}

TEST_F(MetricsServerTest, AProcessShowsWhatIsCountedAndDiesWithItsParent) {
  auto* const count = make_shared_with_children<std::atomic<int>>().value();
  MetricsServer::Options options;
  options.listener = listen();
  options.page_every = milliseconds(0);
  std::fflush(nullptr);
  const pid_t parent = ::fork();
  if (parent == 0) {
    const auto process = MetricsProcess::start(
        std::move(options), [count] { return "x_total " + std::to_string(*count) + "\n"; },
        [](const std::string&) {});
    if (!process) ::_exit(1);
    for (;;) ::pause();
  }
  options.listener.reset();
  EXPECT_THAT(scrape(), EndsWith("x_total 0\n"));
  *count = 7;
  EXPECT_THAT(scrape(), EndsWith("x_total 7\n"));
  ::kill(parent, SIGKILL);
  ::waitpid(parent, nullptr, 0);
  const auto deadline = patience();
  while (io::connect_tcp({"127.0.0.1", port_}, patience()) &&
         io::Deadline::clock::now() < deadline) {
    ::poll(nullptr, 0, 5);
  }
  EXPECT_FALSE(io::connect_tcp({"127.0.0.1", port_}, patience())) << "it outlives its parent";
}

TEST(MetricsOptionsTest, AnAddressIsThisHostsOwnUnlessOneIsNamed) {
  for (const auto& [text, url] :
       {std::pair{"0", "http://127.0.0.1:"}, std::pair{"127.0.0.1:0", "http://127.0.0.1:"},
        std::pair{":0", "http://0.0.0.0:"}}) {
    const auto place = open_metrics({text, ""});
    ASSERT_TRUE(place) << place.error().message;
    ASSERT_TRUE(*place);
    EXPECT_THAT((*place)->url, StartsWith(url));
    EXPECT_THAT((*place)->url, testing::Not(HasSubstr(":0/")));
  }
  EXPECT_FALSE(open_metrics({}).value());
}

TEST(MetricsOptionsTest, WhatCannotBeListenedOnIsOneSentence) {
  const auto first = open_metrics({"0", ""});
  ASSERT_TRUE(first);
  const std::string port = std::to_string(io::local_port((*first)->server.listener.get()).value());
  const auto second = open_metrics({port, ""});
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Errc::in_use);
  EXPECT_THAT(second.error().message,
              testing::AllOf(StartsWith("--metrics: listening on 127.0.0.1:" + port),
                             EndsWith(": end what listens there, or choose another port")));
  for (const char* text : {"x", "1:2:3", "70000", "127.0.0.1:"}) {
    const auto refused = open_metrics({text, ""});
    ASSERT_FALSE(refused) << text;
    EXPECT_EQ(refused.error().code, Errc::invalid_argument);
    EXPECT_THAT(refused.error().message, HasSubstr("is not [ADDRESS:]PORT, such as 9460"));
  }
}

}  // namespace
}  // namespace vmshadow::app
