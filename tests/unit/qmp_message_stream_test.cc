#include <gtest/gtest.h>
#include <sys/resource.h>

#include <string>
#include <vector>

#include "qmp/message_stream.h"

namespace vmshadow::qmp {
namespace {

using nlohmann::json;

ByteSpan bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

std::vector<json> take_all(MessageStream& stream) {
  std::vector<json> messages;
  while (auto message = stream.next()) messages.push_back(std::move(*message));
  return messages;
}

constexpr std::string_view kThree =
    "{\"a\": \"brace } quote \\\" slash \\\\\"}\r\n \t{\"b\": [1, {\"c\": {}}]}{\n \"d\": "
    "\"\\u00e9\"\n}\n";

TEST(MessageStreamTest, AnyChunkingYieldsTheSameMessages) {
  for (std::size_t chunk = 1; chunk <= kThree.size(); ++chunk) {
    MessageStream stream(1000);
    for (std::size_t at = 0; at < kThree.size(); at += chunk) {
      ASSERT_TRUE(stream.feed(bytes_of(kThree.substr(at, chunk)))) << chunk;
    }
    const auto messages = take_all(stream);
    ASSERT_EQ(messages.size(), 3u) << chunk;
    EXPECT_EQ(messages[0], (json{{"a", "brace } quote \" slash \\"}}));
    EXPECT_EQ(messages[1]["b"][1]["c"], json::object());
    EXPECT_EQ(messages[2]["d"], "\u00e9");
    EXPECT_EQ(stream.unfinished_bytes(), 0u);
  }
}

TEST(MessageStreamTest, HalfAMessageIsNoMessageYet) {
  MessageStream stream(1000);
  ASSERT_TRUE(stream.feed(bytes_of("  {\"a\": [")));
  EXPECT_FALSE(stream.next());
  EXPECT_EQ(stream.unfinished_bytes(), 7u);
  ASSERT_TRUE(stream.feed(bytes_of("]}")));
  EXPECT_TRUE(stream.next());
}

TEST(MessageStreamTest, GarbageIsNamedAndFinal) {
  for (const std::string_view garbage :
       {"QEMU 7.2.22 monitor - type 'help'\r\n(qemu) ", "HTTP/1.1 400 Bad Request\r\n", "[1]",
        "\x16\x03\x01", "null", "\"text\"", "}"}) {
    MessageStream stream(1000);
    const auto fed = stream.feed(bytes_of(garbage));
    ASSERT_FALSE(fed) << garbage;
    EXPECT_EQ(fed.error().code, Errc::protocol);
    EXPECT_NE(fed.error().message.find("a message must be a JSON object"), std::string::npos);
    EXPECT_NE(fed.error().message.find(excerpt(garbage)), std::string::npos);
    const auto again = stream.feed(bytes_of("{}"));
    ASSERT_FALSE(again);
    EXPECT_EQ(again.error().message, fed.error().message);
    EXPECT_FALSE(stream.next());
  }
}

TEST(MessageStreamTest, MessagesBeforeTheFaultAreKept) {
  MessageStream stream(1000);
  EXPECT_FALSE(stream.feed(bytes_of("{\"a\":1}{\"b\":2}x")));
  EXPECT_EQ(take_all(stream).size(), 2u);
}

TEST(MessageStreamTest, BalancedButInvalidJsonIsRefused) {
  for (const std::string_view text : {"{]", "{\"a\" 1}", "{'a': 1}", "{\"a\": \"\xff\"}", "{,}",
                                      "{\"a\": \"\\q\"}", "{\"a\": 1e999}"}) {
    MessageStream stream(1000);
    const auto fed = stream.feed(bytes_of(text));
    ASSERT_FALSE(fed) << text;
    EXPECT_EQ(fed.error().code, Errc::protocol);
    EXPECT_NE(fed.error().message.find("not valid JSON"), std::string::npos) << fed.error().message;
  }
}

TEST(MessageStreamTest, ARawControlCharacterInAStringIsRefusedAtOnce) {
  MessageStream stream(1000);
  const auto fed = stream.feed(bytes_of("{\"a\": \"half\n"));
  ASSERT_FALSE(fed);
  EXPECT_NE(fed.error().message.find("control character"), std::string::npos);
}

TEST(MessageStreamTest, TheLimitIsExact) {
  const std::string fits = "{\"a\": \"" + std::string(91, 'x') + "\"}";
  ASSERT_EQ(fits.size(), 100u);
  MessageStream stream(100);
  EXPECT_TRUE(stream.feed(bytes_of(fits + "\n" + fits + "\n" + fits)));
  EXPECT_EQ(take_all(stream).size(), 3u);
  MessageStream smaller(99);
  const auto fed = smaller.feed(bytes_of(fits));
  ASSERT_FALSE(fed);
  EXPECT_EQ(fed.error().code, Errc::protocol);
  EXPECT_NE(fed.error().message.find("longer than 99 bytes"), std::string::npos);
}

TEST(MessageStreamTest, A100MegabyteLineIsRefusedWithinTheLimitsMemory) {
  rusage before{};
  ::getrusage(RUSAGE_SELF, &before);
  MessageStream stream(std::size_t{1} << 20);
  ASSERT_TRUE(stream.feed(bytes_of("{\"a\": \"")));
  const std::string chunk(64 * 1024, 'x');
  std::size_t refused = 0;
  for (std::size_t sent = 0; sent < 100u << 20; sent += chunk.size()) {
    if (!stream.feed(bytes_of(chunk))) ++refused;
    ASSERT_LE(stream.unfinished_bytes(), std::size_t{1} << 20);
  }
  EXPECT_EQ(refused, 1600u - 15u);
  EXPECT_EQ(stream.unfinished_bytes(), 0u);
  rusage after{};
  ::getrusage(RUSAGE_SELF, &after);
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 16 * 1024);  // KiB
}

TEST(MessageStreamTest, NestingIsBounded) {
  const auto nested = [](std::size_t levels) {
    return "{\"a\":" + std::string(levels - 1, '[') + std::string(levels - 1, ']') + "}";
  };
  MessageStream stream(std::size_t{64} << 20);
  EXPECT_TRUE(stream.feed(bytes_of(nested(MessageStream::kNestingDepthMax))));
  EXPECT_TRUE(stream.next());
  const auto fed = stream.feed(bytes_of(nested(1'000'000)));
  ASSERT_FALSE(fed);
  EXPECT_NE(fed.error().message.find("nested over 1024 levels deep"), std::string::npos);
}

TEST(MessageStreamTest, AnExcerptCannotDisturbATerminal) {
  EXPECT_EQ(excerpt("a\x1b[2Jb\n"), "a.[2Jb.");
  EXPECT_EQ(excerpt(std::string(100, 'x')), std::string(48, 'x') + "...");
}

}  // namespace
}  // namespace vmshadow::qmp
