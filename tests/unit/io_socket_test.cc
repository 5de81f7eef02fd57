#include <gtest/gtest.h>

#include "io/socket.h"

namespace vmshadow::io {
namespace {

TEST(TcpAddressTest, ParsesHostAndPort) {
  EXPECT_EQ(parse_tcp_address("127.0.0.1:7410")->text(), "127.0.0.1:7410");
  EXPECT_EQ(parse_tcp_address("[::1]:7410")->text(), "[::1]:7410");
  EXPECT_FALSE(parse_tcp_address("host"));
  EXPECT_FALSE(parse_tcp_address("::1:7410"));
  EXPECT_FALSE(parse_tcp_address("host:70000"));
  EXPECT_FALSE(parse_tcp_address("host:7410x"));
}

TEST(SocketTest, ReadExactNamesHowFarItCame) {
  auto pair = socket_pair();
  ASSERT_TRUE(pair);
  const std::byte bytes[3] = {};
  ASSERT_TRUE(write_all(pair->first.get(), bytes, deadline_after(std::chrono::seconds(1))));
  pair->first.reset();
  std::byte into[8];
  const auto read = read_exact(pair->second.get(), into, deadline_after(std::chrono::seconds(1)));
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, Errc::closed);
  EXPECT_NE(read.error().message.find("3 of 8"), std::string::npos);
}

TEST(SocketTest, ReadHoldsItsDeadlineAgainstASilentPeer) {
  auto pair = socket_pair();
  ASSERT_TRUE(pair);
  std::byte into[8];
  const auto read =
      read_exact(pair->second.get(), into, deadline_after(std::chrono::milliseconds(20)));
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, Errc::timed_out);
}

TEST(SocketTest, PassedDescriptorIsTheSameConnection) {
  auto channel = socket_pair();
  auto pair = socket_pair();
  ASSERT_TRUE(channel && pair);
  EXPECT_FALSE(take_passed_fd(channel->second.get()));
  const auto soon = deadline_after(std::chrono::seconds(1));
  const std::byte byte{};
  ASSERT_TRUE(write_with_fd(channel->first.get(), {&byte, 1}, pair->first.get(), soon));
  channel->first.reset();  // what is on its way arrives all the same
  const UniqueFd passed = take_passed_fd(channel->second.get());
  ASSERT_TRUE(passed);
  ASSERT_TRUE(write_all(passed.get(), {&byte, 1}, soon));
  std::byte into[1];
  EXPECT_TRUE(read_exact(pair->second.get(), into, soon));
  EXPECT_FALSE(take_passed_fd(channel->second.get()));
}

TEST(SocketTest, ByteWithoutADescriptorIsNone) {
  auto channel = socket_pair();
  ASSERT_TRUE(channel);
  const std::byte byte{};
  ASSERT_TRUE(write_all(channel->first.get(), {&byte, 1}, deadline_after(std::chrono::seconds(1))));
  EXPECT_FALSE(take_passed_fd(channel->second.get()));
}

}  // namespace
}  // namespace vmshadow::io
