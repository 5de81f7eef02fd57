// How metrics are served: what a request gets, and what peers that stall, flood or drip cannot do.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <functional>
#include <list>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>

#include "app/metrics_http.h"
#include "app/metrics_options.h"
#include "app/metrics_process.h"
#include "app/metrics_thread.h"
#include "base/shared_memory.h"
#include "base/standard_streams.h"
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
  EXPECT_THAT(answer("POST /metrics HTTP/1.1\r\n\r\n"),
              StartsWith("HTTP/1.1 405 Method Not Allowed\r\nAllow: GET, HEAD\r\n"));
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

/// Of "http://127.0.0.1:PORT/metrics".
std::uint16_t port_of(const std::string& url) {
  const std::string address = url.substr(7, url.find('/', 7) - 7);
  return io::parse_tcp_address(address).value().port;
}

class MetricsServerTest : public testing::Test {
 protected:
  /// On a port of its own.
  void start(MetricsServer::Options options = {}) {
    options.listen = io::TcpAddress{"127.0.0.1", 0};
    start_as_told(std::move(options));
    wait_until([this] { return port_ != 0; });
  }
  void start_as_told(MetricsServer::Options options) {
    auto started = MetricsThread::start(
        std::move(options), {.page =
                                 [this] {
                                   ++pages_;
                                   nice_ = ::getpriority(PRIO_PROCESS, ::gettid());
                                   return std::string(kPage);
                                 },
                             .announce = [this](const std::string& url) { port_ = port_of(url); },
                             .say = [this](const std::string& why) { say(why); }});
    ASSERT_TRUE(started) << started.error().message;
    thread_ = *std::move(started);
  }
  void say(const std::string& why) {
    const std::lock_guard lock(mutex_);
    said_.push_back(why);
  }
  [[nodiscard]] std::vector<std::string> said() {
    const std::lock_guard lock(mutex_);
    return said_;
  }
  template <class Ready>
  static void wait_until(Ready ready) {
    const auto deadline = patience();
    while (!ready()) {
      if (io::Deadline::clock::now() >= deadline) throw std::runtime_error("it does not happen");
      ::poll(nullptr, 0, 1);
    }
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

  std::atomic<std::uint16_t> port_ = 0;
  std::atomic<int> pages_ = 0;
  std::atomic<int> nice_ = 99;
  std::mutex mutex_;
  std::vector<std::string> said_;
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

// What a page is made from may take locks that the program's work needs: whoever holds one must not
// wait for a processor behind all others.
TEST_F(MetricsServerTest, APageIsMadeAtTheProgramsOwnPriority) {
  start();
  EXPECT_THAT(scrape(), EndsWith(kPage));
  EXPECT_EQ(nice_, ::getpriority(PRIO_PROCESS, 0));
}

TEST_F(MetricsServerTest, APortThatIsTakenIsSaidOnceAndHadOnceItIsFree) {
  auto taken = io::listen_tcp({"127.0.0.1", 0}).value();
  const std::uint16_t port = io::local_port(taken.get()).value();
  const test::TempDir folder;
  MetricsServer::Options options;
  options.listen = io::TcpAddress{"127.0.0.1", port};
  options.listen_every = milliseconds(5);
  options.file = folder.file("vm.prom");
  start_as_told(std::move(options));
  wait_until([&] { return !said().empty(); });
  EXPECT_THAT(
      said().front(),
      testing::AllOf(StartsWith("--metrics: listening on 127.0.0.1:" + std::to_string(port)),
                     HasSubstr(": end what listens there, or choose another port; no metrics "
                               "there, tried again every ")));
  // What can be had is.
  wait_until([&] { return std::filesystem::exists(folder.file("vm.prom")); });
  ::poll(nullptr, 0, 50);
  taken.reset();
  wait_until([&] { return port_ == port; });
  EXPECT_THAT(scrape(), EndsWith(kPage));
  EXPECT_EQ(said().size(), 1U);
}

class MetricsFileTest : public MetricsServerTest {
 protected:
  [[nodiscard]] MetricsServer::Options to_file() const {
    MetricsServer::Options options;
    options.file = path_;
    options.file_every = milliseconds(1);
    return options;
  }
  void wait_for_file() const {
    wait_until([this] { return std::filesystem::exists(path_); });
  }

  const test::TempDir folder_;
  const std::string path_ = folder_.file("vm.prom");
};

TEST_F(MetricsFileTest, IsWholeAtAnyTimeAndGoesWithTheServer) {
  start(to_file());
  wait_for_file();
  for (int i = 0; i < 200; ++i) {
    std::ifstream file(path_);
    ASSERT_EQ(std::string(std::istreambuf_iterator<char>(file), {}), kPage);
  }
  thread_.reset();
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
  EXPECT_TRUE(said().empty());
}

// Its collector is another user.
TEST_F(MetricsFileTest, IsReadableWhateverTheUmask) {
  const mode_t before = ::umask(077);
  start(to_file());
  wait_for_file();
  ::umask(before);
  struct stat found {};
  ASSERT_EQ(::stat(path_.c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 07777, 0644U);
}

TEST_F(MetricsFileTest, IsNeverWrittenThroughALink) {
  const std::string other = folder_.file("other");
  std::ofstream(other) << "precious";
  std::filesystem::create_symlink(other, path_ + ".new");
  std::filesystem::create_symlink(other, path_);
  start(to_file());
  wait_until([this] { return !std::filesystem::is_symlink(path_); });
  thread_.reset();
  std::ifstream file(other);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(file), {}), "precious");
  EXPECT_TRUE(said().empty());
}

TEST_F(MetricsFileTest, ThatCannotBeWrittenIsSaidOnceUntilItCan) {
  MetricsServer::Options options = to_file();
  options.file = folder_.file("sub/vm.prom");
  start(std::move(options));
  wait_until([this] { return !said().empty(); });
  EXPECT_THAT(scrape(), EndsWith(kPage));
  ::poll(nullptr, 0, 50);  // many tries
  EXPECT_EQ(said().size(), 1U);
  EXPECT_THAT(said().front(),
              testing::AllOf(HasSubstr("writing the metrics file '" + folder_.file("sub/vm.prom")),
                             HasSubstr("No such file or directory")));
  std::filesystem::create_directory(folder_.file("sub"));
  wait_until([this] { return std::filesystem::exists(folder_.file("sub/vm.prom")); });
  thread_.reset();
  EXPECT_EQ(said().size(), 1U);
}

// As in a file system that does not answer, where the thread waits for ever.
TEST_F(MetricsFileTest, AThreadThatHangsDoesNotHoldTheEnd) {
  struct Gate {
    std::mutex mutex;
    std::condition_variable changed;
    bool reached = false, open = false;
  };
  const auto gate = std::make_shared<Gate>();  // outlives the test, as the thread may
  MetricsServer::Options options;
  options.file = folder_.file("sub/vm.prom");
  auto thread = MetricsThread::start(std::move(options),
                                     {.page = [] { return std::string(kPage); },
                                      .announce = [](const std::string&) {},
                                      .say =
                                          [gate](const std::string&) {
                                            std::unique_lock lock(gate->mutex);
                                            gate->reached = true;
                                            gate->changed.notify_all();
                                            gate->changed.wait(lock, [&] { return gate->open; });
                                          }})
                    .value();
  {
    std::unique_lock lock(gate->mutex);
    gate->changed.wait(lock, [&] { return gate->reached; });
  }
  thread.reset();
  const std::lock_guard lock(gate->mutex);
  gate->open = true;
  gate->changed.notify_all();
}

class MetricsProcessTest : public MetricsFileTest {
 protected:
  struct Shared {
    std::atomic<int> count{0};
    std::atomic<std::uint16_t> port{0};
    std::atomic<pid_t> server{0};
  };
  /// A process that has a MetricsProcess, and waits.
  void start_parent(const std::function<void()>& before = [] {}) {
    std::fflush(nullptr);
    parent_ = ::fork();
    if (parent_ > 0) {
      wait_until([this] { return shared_->port != 0; });
      port_ = shared_->port.load();
      return;
    }
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigset_t end;
    ::sigemptyset(&end);
    ::sigaddset(&end, SIGTERM);
    ::sigprocmask(SIG_BLOCK, &end, nullptr);
    before();
    MetricsServer::Options options = to_file();
    options.listen = io::TcpAddress{"127.0.0.1", 0};
    options.page_every = milliseconds(0);
    {
      const auto process = MetricsProcess::start(
          std::move(options),
          {.page =
               [this] {
                 shared_->server = ::getpid();
                 return "x_total " + std::to_string(shared_->count) + "\n";
               },
           .announce = [this](const std::string& url) { shared_->port = port_of(url); },
           .say = [](const std::string&) {}});
      if (!process) ::_exit(1);
      int got = 0;
      ::sigwait(&end, &got);
    }
    ::_exit(0);
  }
  /// SIGTERM: in order.
  void end_parent(int signal) {
    ::kill(parent_, signal);
    int status = 0;
    const auto ended = [&] { return ::waitpid(parent_, &status, WNOHANG) == parent_; };
    wait_until(ended);
    EXPECT_EQ(signal == SIGTERM, WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  /// Also of one that is stopped, as long as it is there.
  [[nodiscard]] bool listens() const {
    const auto peer = io::connect_tcp({"127.0.0.1", port_}, io::deadline_after(milliseconds(100)));
    return peer || peer.error().code == Errc::timed_out;
  }

  Shared* const shared_ = make_shared_with_children<Shared>().value();
  pid_t parent_ = -1;
};

TEST_F(MetricsProcessTest, ShowsWhatIsCountedAndEndsWithItsParentWhateverEndsThat) {
  for (const int signal : {SIGTERM, SIGKILL}) {
    SCOPED_TRACE(signal);
    shared_->count = 0;
    shared_->port = 0;
    start_parent();
    EXPECT_THAT(scrape(), EndsWith("x_total 0\n"));
    shared_->count = 7;
    EXPECT_THAT(scrape(), EndsWith("x_total 7\n"));
    wait_for_file();
    // A service manager tells all processes: it goes on until its parent has ended.
    ::kill(shared_->server, SIGTERM);
    EXPECT_THAT(scrape(), EndsWith("x_total 7\n"));
    end_parent(signal);
    wait_until([this] { return !listens(); });
    // A file that stays would say for ever that all is well.
    wait_until([this] { return !std::filesystem::exists(path_); });
  }
}

TEST_F(MetricsProcessTest, ThatHangsDoesNotHoldItsParentsEnd) {
  start_parent();
  EXPECT_THAT(scrape(), EndsWith("x_total 0\n"));
  ::kill(shared_->server, SIGSTOP);
  end_parent(SIGTERM);
  wait_until([this] { return !listens(); });
}

TEST_F(MetricsProcessTest, OfAProgramWithoutStandardStreamsWaitsLikeAnyOther) {
  start_parent([] {
    ::close_range(0, 2, 0);
    open_standard_streams();
  });
  EXPECT_THAT(scrape(), EndsWith("x_total 0\n"));
  ::poll(nullptr, 0, 200);
  clockid_t clock{};
  timespec used{};
  ASSERT_EQ(::clock_getcpuclockid(shared_->server, &clock), 0);
  ASSERT_EQ(::clock_gettime(clock, &used), 0);
  EXPECT_EQ(used.tv_sec, 0);
  EXPECT_LT(used.tv_nsec, 150'000'000) << "it is to wait, not to spin";
  end_parent(SIGTERM);
}

TEST(StandardStreams, ThatAreClosedAreOpened) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(STDIN_FILENO);
    ::close(STDERR_FILENO);
    open_standard_streams();
    const UniqueFd next(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    ::_exit(next.get() > STDERR_FILENO && ::fcntl(STDIN_FILENO, F_GETFD) == 0 ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST(MetricsOptionsTest, AnAddressIsThisHostsOwnUnlessOneIsNamed) {
  for (const auto& [text, address] :
       {std::pair{"9460", "127.0.0.1:9460"}, std::pair{":9460", "127.0.0.1:9460"},
        std::pair{"192.0.2.7:0", "192.0.2.7:0"}, std::pair{"0.0.0.0:9460", "0.0.0.0:9460"},
        std::pair{"[::]:9460", "[::]:9460"}}) {
    const auto options = metrics_server_options({text, "file"});
    ASSERT_TRUE(options) << options.error().message;
    ASSERT_TRUE(*options);
    EXPECT_EQ((*options)->listen.value().text(), address);
    EXPECT_EQ((*options)->file, "file");
  }
  EXPECT_FALSE(metrics_server_options({}).value());
  EXPECT_FALSE(metrics_server_options({"", "file"}).value()->listen);
}

TEST(MetricsOptionsTest, WhatIsNoAddressIsOneSentence) {
  for (const char* text : {"x", "1:2:3", "70000", "127.0.0.1:"}) {
    const auto refused = metrics_server_options({text, ""});
    ASSERT_FALSE(refused) << text;
    EXPECT_EQ(refused.error().code, Errc::invalid_argument);
    EXPECT_THAT(refused.error().message, HasSubstr("is not [ADDRESS:]PORT, such as 9460"));
  }
}

}  // namespace
}  // namespace vmshadow::app
