// The report of a program that has a VM in its care: whatever its reader does, nobody waits.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>

#include "app/report_stream.h"
#include "base/unique_fd.h"

namespace vmshadow::app {
namespace {

class ReportStreamTest : public testing::Test {
 protected:
  ReportStreamTest() {
    ::signal(SIGPIPE, SIG_IGN);
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) throw std::runtime_error("no pipe");
    reader_.reset(ends[0]);
    writer_.reset(ends[1]);
    ::fcntl(writer_.get(), F_SETPIPE_SZ, 4096);
    stream_ = ReportStream::open(writer_.get(), [](std::uint64_t lines) {
                return "missed " + std::to_string(lines) + "\n";
              }).value();
  }
  void print(const std::string& line) {
    std::fputs((line + "\n").c_str(), stream_->file());
    std::fflush(stream_->file());
  }
  /// The next line; "" at the end.
  std::string read_line() {
    std::string line;
    for (char c = 0; ::read(reader_.get(), &c, 1) == 1 && c != '\n';) line += c;
    return line;
  }

  UniqueFd reader_, writer_;
  std::unique_ptr<ReportStream> stream_;
};

TEST_F(ReportStreamTest, LinesComeInOrder) {
  for (int i = 0; i < 100; ++i) print("line " + std::to_string(i));
  for (int i = 0; i < 100; ++i) EXPECT_EQ(read_line(), "line " + std::to_string(i));
}

// Far more than a pipe holds, without a reader: so much it may fall behind and miss nothing.
TEST_F(ReportStreamTest, AReaderThatIsBehindMissesNothing) {
  const std::string text(500, 'x');
  for (int i = 0; i < 1000; ++i) print(std::to_string(i) + text);
  for (int i = 0; i < 1000; ++i) ASSERT_EQ(read_line(), std::to_string(i) + text);
}

TEST_F(ReportStreamTest, AReaderThatStallsHoldsNobodyAndIsToldWhatItMissed) {
  const std::string text(500, 'x');
  constexpr std::uint64_t kLines = 5000;
  for (std::uint64_t i = 0; i < kLines; ++i) print(std::to_string(i) + text);
  std::uint64_t next = 0;
  std::string line;
  for (; (line = read_line()) == std::to_string(next) + text; ++next) {
  }
  EXPECT_GT(next, 1900U);
  EXPECT_LT(next, kLines);
  EXPECT_EQ(line, "missed " + std::to_string(kLines - next));
  print("again");
  EXPECT_EQ(read_line(), "again");
}

// The end of a program does not wait for ever either.
TEST_F(ReportStreamTest, AReaderThatStallsDoesNotHoldTheEnd) {
  const std::string text(500, 'x');
  for (int i = 0; i < 100; ++i) print(text);
  stream_.reset();
  // Its thread is still there, and ends with what it had.
  for (int i = 0; i < 100; ++i) ASSERT_EQ(read_line(), text);
}

TEST_F(ReportStreamTest, WhatIsQueuedAtTheEndStillComes) {
  for (int i = 0; i < 5; ++i) print("line " + std::to_string(i));
  stream_.reset();
  writer_.reset();
  for (int i = 0; i < 5; ++i) EXPECT_EQ(read_line(), "line " + std::to_string(i));
  EXPECT_EQ(read_line(), "");
}

TEST_F(ReportStreamTest, AReaderThatEndsEndsNothing) {
  reader_.reset();
  for (int i = 0; i < 100; ++i) print(std::string(500, 'x'));
  stream_.reset();
}

}  // namespace
}  // namespace vmshadow::app
