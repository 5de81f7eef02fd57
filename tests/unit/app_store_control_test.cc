// The control channel's words, and the socket they travel over.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "app/control_socket.h"
#include "app/store_control.h"
#include "io/socket.h"
#include "support/temp_dir.h"

namespace vmshadow::app {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using Json = nlohmann::ordered_json;
using std::chrono::milliseconds;
using std::chrono::seconds;

// ---- words

TEST(StoreControlTest, RequestsComeBackAsTheyWere) {
  const std::pair<ControlRequest, const char*> cases[] = {
      {PinRequest{"web1", Epoch{1200}}, R"({"command":"pin","vm":"web1","epoch":1200})"},
      {UnpinRequest{"web1", Epoch{UINT64_MAX}},
       R"({"command":"unpin","vm":"web1","epoch":18446744073709551615})"},
      {SetRetentionRequest{"web1", "window=10m,hourly=1d"},
       R"({"command":"set_retention","vm":"web1","policy":"window=10m,hourly=1d"})"},
      {SetQuotaRequest{"web1", 10'737'418'240},
       R"({"command":"set_quota","vm":"web1","bytes":10737418240})"},
      {NoteReadsRequest{{{3, 4096}, {17, 1}}},
       R"({"command":"note_reads","segments":[[3,4096],[17,1]]})"},
      {StatusRequest{}, R"({"command":"status"})"},
  };
  for (const auto& [request, text] : cases) {
    EXPECT_EQ(serialize(request), text);
    const auto parsed = parse_control_request(text);
    ASSERT_TRUE(parsed) << parsed.error().message;
    EXPECT_EQ(*parsed, request);
  }
}

TEST(StoreControlTest, WhatIsWrongWithARequestIsSaid) {
  struct Case {
    std::string text;
    Errc code;
    const char* words;
  };
  const Case cases[] = {
      {"", Errc::invalid_argument, "not a JSON object"},
      {"[]", Errc::invalid_argument, "not a JSON object"},
      {"{}", Errc::invalid_argument, "no text 'command'"},
      {R"({"command":"format"})", Errc::unsupported, "another version"},
      {R"({"command":"pin","epoch":1})", Errc::invalid_argument, "no text 'vm'"},
      {R"({"command":"pin","vm":"../x","epoch":1})", Errc::invalid_argument, "VM's name"},
      {R"({"command":"pin","vm":"a","epoch":-1})", Errc::invalid_argument, "no number 'epoch'"},
      {R"({"command":"pin","vm":"a","epoch":1.5})", Errc::invalid_argument, "no number 'epoch'"},
      {R"({"command":"pin","vm":"a","epoch":"1"})", Errc::invalid_argument, "no number 'epoch'"},
      {R"({"command":"pin","vm":"a","epoch":1,"until":2})", Errc::unsupported, "key 'until'"},
      {R"({"command":"status","vm":"a"})", Errc::unsupported, "key 'vm'"},
      {R"({"command":"set_quota","vm":"a","bytes":-1})", Errc::invalid_argument,
       "no number 'bytes'"},
      {R"({"command":"note_reads"})", Errc::invalid_argument, "no list 'segments'"},
      {R"({"command":"note_reads","segments":[[1]]})", Errc::invalid_argument, "pairs of segment"},
      {R"({"command":"note_reads","segments":[[1,-1]]})", Errc::invalid_argument, "pairs of"},
      {R"({"command":"set_retention","vm":"a","policy":""})", Errc::invalid_argument, "1 to 1024"},
      {R"({"command":"set_retention","vm":"a","policy":"\u001b[2J"})", Errc::invalid_argument,
       "printable"},
      {std::string(kControlRequestBytesMax + 1, ' '), Errc::invalid_argument, "too long"},
      {std::string(kControlRequestBytesMax, '['), Errc::invalid_argument, "not a JSON object"},
  };
  for (const Case& c : cases) {
    const auto parsed = parse_control_request(c.text);
    ASSERT_FALSE(parsed) << c.text;
    EXPECT_EQ(parsed.error().code, c.code) << c.text;
    EXPECT_THAT(parsed.error().message, HasSubstr(c.words)) << c.text;
  }
}

TEST(StoreControlTest, ResponsesComeBackAsTheyWere) {
  EXPECT_EQ(serialize(ControlResponse(Json(nullptr))), R"({"ok":true})");
  EXPECT_TRUE(parse_control_response(R"({"ok":true})")->is_null());
  Json result;
  result["epochs"] = 7;
  EXPECT_EQ(*parse_control_response(serialize(ControlResponse(result))), result);
  const ControlResponse failed = fail(Errc::not_found, "no VM 'x'");
  EXPECT_EQ(serialize(failed),
            R"({"ok":false,"error":{"code":"not_found","message":"no VM 'x'"}})");
  const auto parsed = parse_control_response(serialize(failed));
  ASSERT_FALSE(parsed);
  EXPECT_EQ(parsed.error().code, Errc::not_found);
  EXPECT_EQ(parsed.error().message, "no VM 'x'");
  // Codes that do not exist yet are errors too.
  EXPECT_EQ(parse_control_response(R"({"ok":false,"error":{"code":"melted","message":"m"}})")
                .error()
                .code,
            Errc::io);
  for (const char* text : {"", "{}", R"({"ok":1})", R"({"ok":false})", R"({"ok":false,"error":1})",
                           R"({"ok":false,"error":{"code":"io"}})"}) {
    EXPECT_EQ(parse_control_response(text).error().code, Errc::protocol) << text;
  }
}

// ---- the socket

class FakeStore : public StoreControl {
 public:
  Status pin(const std::string& vm, Epoch epoch) override {
    calls.push_back("pin " + vm + " " + std::to_string(epoch.value));
    if (vm == "nobody") return fail(Errc::not_found, "no VM 'nobody' in the store");
    return {};
  }
  Status unpin(const std::string& vm, Epoch epoch) override {
    calls.push_back("unpin " + vm + " " + std::to_string(epoch.value));
    return {};
  }
  Status set_retention(const std::string& vm, const std::string& policy) override {
    calls.push_back("retention " + vm + " " + policy);
    return {};
  }
  Status set_quota(const std::string& vm, std::uint64_t bytes) override {
    calls.push_back("quota " + vm + " " + std::to_string(bytes));
    return {};
  }
  Status note_reads(const std::map<std::uint64_t, std::uint64_t>& segments) override {
    calls.push_back("reads of " + std::to_string(segments.size()));
    return {};
  }
  Result<Json> status() override {
    Json json;
    json["epochs"] = 7;
    return json;
  }
  std::vector<std::string> calls;
};

class ControlSocketTest : public ::testing::Test {
 protected:
  std::unique_ptr<ControlServer> serve(const std::string& directory,
                                       milliseconds within = seconds(30)) {
    auto server = ControlServer::start(directory, store_, within);
    EXPECT_TRUE(server) << server.error().message;
    return server ? *std::move(server) : nullptr;
  }
  std::string socket_path() const { return folder_.file("control.sock"); }
  UniqueFd connect() const {
    auto fd = io::connect_unix(socket_path(), io::deadline_after(seconds(10)));
    EXPECT_TRUE(fd);
    return fd ? *std::move(fd) : UniqueFd();
  }
  static void send(const UniqueFd& fd, const std::string& text) {
    EXPECT_TRUE(
        io::write_all(fd.get(), std::as_bytes(std::span(text)), io::deadline_after(seconds(10))));
  }
  /// Until the server closes.
  static std::string receive(const UniqueFd& fd) {
    std::string all;
    std::array<char, 4096> piece;
    for (;;) {
      const auto got = io::read_some(fd.get(), std::as_writable_bytes(std::span(piece)),
                                     io::deadline_after(seconds(30)));
      if (!got || *got == 0) return all;
      all.append(piece.data(), *got);
    }
  }

  test::TempDir folder_;
  FakeStore store_;
};

TEST_F(ControlSocketTest, RequestsReachTheStoreAndAnswersComeBack) {
  const auto server = serve(folder_.path());
  const auto pinned = call_store(folder_.path(), PinRequest{"web1", Epoch{3}});
  ASSERT_TRUE(pinned && *pinned) << pinned->error().message;
  EXPECT_TRUE(*call_store(folder_.path(), UnpinRequest{"web1", Epoch{3}}));
  EXPECT_TRUE(*call_store(folder_.path(), SetRetentionRequest{"web1", "window=1h"}));
  EXPECT_TRUE(*call_store(folder_.path(), SetQuotaRequest{"web1", 9}));
  EXPECT_EQ((**call_store(folder_.path(), StatusRequest{}))["epochs"], 7);
  const auto refused = call_store(folder_.path(), PinRequest{"nobody", Epoch{3}});
  ASSERT_TRUE(refused);
  ASSERT_FALSE(*refused);
  EXPECT_EQ(refused->error().code, Errc::not_found);
  EXPECT_EQ(refused->error().message, "no VM 'nobody' in the store");
  EXPECT_THAT(store_.calls,
              ::testing::ElementsAre("pin web1 3", "unpin web1 3", "retention web1 window=1h",
                                     "quota web1 9", "pin nobody 3"));
}

TEST_F(ControlSocketTest, OnlyItsOwnerMayConnectAndItGoesWithTheServer) {
  const mode_t before = ::umask(0);
  auto server = serve(folder_.path());
  ::umask(before);
  struct stat status {};
  ASSERT_EQ(::stat(socket_path().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  server.reset();
  EXPECT_FALSE(fs::exists(socket_path()));
  EXPECT_FALSE(call_store(folder_.path(), StatusRequest{}));
}

TEST_F(ControlSocketTest, ADeadStoresSocketIsNobodyAndIsReplaced) {
  const UniqueFd dead(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, socket_path().c_str(), sizeof address.sun_path - 1);
  ASSERT_EQ(::bind(dead.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  EXPECT_FALSE(call_store(folder_.path(), StatusRequest{}));
  const auto server = serve(folder_.path());
  EXPECT_TRUE(*call_store(folder_.path(), StatusRequest{}));
}

TEST_F(ControlSocketTest, AFileOfThatNameIsLeftAlone) {
  std::ofstream(socket_path()) << "mine";
  const auto server = ControlServer::start(folder_.path(), store_);
  ASSERT_FALSE(server);
  EXPECT_EQ(server.error().code, Errc::already_exists);
  EXPECT_THAT(server.error().message, HasSubstr("is no socket: remove it"));
  EXPECT_EQ(fs::file_size(socket_path()), 4u);
}

TEST_F(ControlSocketTest, AStoresPathMayBeLongerThanASocketsAddress) {
  const std::string directory = folder_.file(std::string(200, 'd'));
  fs::create_directory(directory);
  auto server = serve(directory);
  const auto answer = call_store(directory, PinRequest{"web1", Epoch{3}});
  ASSERT_TRUE(answer && *answer) << answer->error().message;
  EXPECT_TRUE(fs::is_socket(directory + "/control.sock"));
  server.reset();
  EXPECT_FALSE(fs::exists(directory + "/control.sock"));
}

TEST_F(ControlSocketTest, NonsenseIsAnsweredAndTheNextIsServed) {
  const auto server = serve(folder_.path());
  {
    const UniqueFd fd = connect();
    send(fd, "hello\n");
    EXPECT_THAT(receive(fd), HasSubstr("not a JSON object"));
  }
  {
    const UniqueFd fd = connect();
    send(fd, std::string(kControlRequestBytesMax + 4096, 'x'));
    EXPECT_THAT(receive(fd), HasSubstr("longer than"));
  }
  {
    const UniqueFd fd = connect();
    send(fd, R"({"command":"pin")");
    ::shutdown(fd.get(), SHUT_WR);
    EXPECT_EQ(receive(fd), "");
  }
  connect();  // and goes away at once
  EXPECT_TRUE(*call_store(folder_.path(), StatusRequest{}));
  EXPECT_TRUE(store_.calls.empty());
}

TEST_F(ControlSocketTest, ASilentClientHoldsNobodyUpForLong) {
  const auto server = serve(folder_.path(), milliseconds(50));
  const UniqueFd silent = connect();
  EXPECT_TRUE(*call_store(folder_.path(), StatusRequest{}));
  EXPECT_EQ(receive(silent), "");
}

TEST_F(ControlSocketTest, AStoreThatDoesNotAnswerIsNotWaitedForForever) {
  const auto listener = io::listen_unix(socket_path());
  ASSERT_TRUE(listener);
  const auto answer = call_store(folder_.path(), StatusRequest{}, milliseconds(50));
  ASSERT_TRUE(answer);
  ASSERT_FALSE(*answer);
  EXPECT_EQ(answer->error().code, Errc::timed_out);
  EXPECT_THAT(answer->error().message, HasSubstr("it may still do what was asked"));
}

}  // namespace
}  // namespace vmshadow::app
