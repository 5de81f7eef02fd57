#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "app/progress_bar.h"

namespace vmshadow::app {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;

TEST(ProgressTextTest, SaysShareBytesRateAndTimeLeft) {
  EXPECT_EQ(
      progress_text("restoring web1", 250'000'000, 1'000'000'000, seconds(5)),
      "restoring web1  [#######·······················]  25 %  250.0 of 1000.0 MB  50.0 MB/s  "
      "15 s left");
  EXPECT_THAT(progress_text("x", 1'000'000, 1'000'000'000, seconds(1)), HasSubstr("16 min left"));
  EXPECT_THAT(progress_text("x", 1'000'000, 100'000'000'000, seconds(1)),
              HasSubstr("27 h 46 min left"));
  EXPECT_THAT(progress_text("x", 2'000, 1'000, seconds(1)), HasSubstr("100 %"));
  EXPECT_EQ(progress_text("x", 0, 1'000'000, seconds(3)),
            "x  [······························]  0 %  0.0 of 1.0 MB");
}

class SetClock : public Clock {
 public:
  [[nodiscard]] MonotonicTime monotonic() const override { return now; }
  [[nodiscard]] WallTime wall() const override { return {}; }
  MonotonicTime now{1'000'000'000};
};

class Written {
 public:
  Written() : file_(::open_memstream(&text_, &bytes_)) {}
  Written(const Written&) = delete;
  Written& operator=(const Written&) = delete;
  ~Written() {
    std::fclose(file_);
    std::free(text_);
  }
  std::FILE* file() { return file_; }
  std::string take() {
    std::fflush(file_);
    const std::string all(text_, bytes_);
    const std::string fresh = all.substr(seen_);
    seen_ = all.size();
    return fresh;
  }

 private:
  char* text_ = nullptr;
  std::size_t bytes_ = 0;
  std::size_t seen_ = 0;
  std::FILE* file_;
};

TEST(ProgressBarTest, ComesAfterTwoSecondsNotTooOftenAndIsWiped) {
  SetClock clock;
  Written out;
  {
    ProgressBar bar("copying", out.file(), clock);
    bar.update(1, 100);
    clock.now = clock.now + milliseconds(1999);
    bar.update(10, 100);
    EXPECT_EQ(out.take(), "");
    clock.now = clock.now + milliseconds(1);
    bar.update(20, 100);
    EXPECT_THAT(out.take(), HasSubstr("\rcopying  [######"));
    clock.now = clock.now + milliseconds(199);
    bar.update(30, 100);
    EXPECT_EQ(out.take(), "");
    clock.now = clock.now + milliseconds(1);
    bar.update(30, 100);
    EXPECT_THAT(out.take(), HasSubstr("30 %"));
  }
  EXPECT_EQ(out.take(), "\r\033[K");
  { ProgressBar short_work("copying", out.file(), clock); }
  EXPECT_EQ(out.take(), "");
}

}  // namespace
}  // namespace vmshadow::app
