// Since when a VM stands still, as the guard is told: by the monitor's events, or by one who knows
// before them.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <atomic>
#include <chrono>
#include <string>

#include "capture/vm_events.h"
#include "support/manual_clock.h"

namespace vmshadow::capture {
namespace {

using std::chrono::milliseconds;

class StopMarkTest : public testing::Test {
 protected:
  StopMarkTest() {
    clock_.advance(milliseconds(1000));
    events_.begin_marking(since_, clock_);
  }
  void tell(const std::string& name) {
    static const qmp::Json none = qmp::Json::object();
    events_.handle({name, none, {}});
  }
  [[nodiscard]] milliseconds since() const {
    return std::chrono::duration_cast<milliseconds>(std::chrono::nanoseconds(since_));
  }

  test::ManualClock clock_;
  std::atomic<std::int64_t> since_{0};
  VmEvents events_;
};

TEST_F(StopMarkTest, IsFromStopToResume) {
  EXPECT_EQ(since(), milliseconds(0));
  tell("STOP");
  EXPECT_EQ(since(), milliseconds(1000));
  clock_.advance(milliseconds(50));
  events_.mark_stopped();  // who reads the stream comes later
  EXPECT_EQ(since(), milliseconds(1000));
  tell("RESUME");
  EXPECT_EQ(since(), milliseconds(0));
}

// COLO's capture tells QEMU to stop the VM: no stop is ever counted from later than that.
TEST_F(StopMarkTest, MayBeginBeforeTheEventAndEndsWithIt) {
  events_.mark_stopped();
  clock_.advance(milliseconds(50));
  tell("STOP");
  EXPECT_EQ(since(), milliseconds(1000));
  tell("RESUME");
  EXPECT_EQ(since(), milliseconds(0));
  tell("STOP");
  EXPECT_EQ(since(), milliseconds(1050));
}

TEST_F(StopMarkTest, LeavesOutWhatQemuMaySendFor) {
  events_.allow_sending(milliseconds(400));
  tell("STOP");
  EXPECT_EQ(since(), milliseconds(1400));
  clock_.advance(milliseconds(100));
  events_.mark_stopped();  // it has sent all of its RAM
  EXPECT_EQ(since(), milliseconds(1100));
}

// Between two captures a VM that is suspended is its administrator's affair.
TEST_F(StopMarkTest, IsNotSetWhereNobodyMarks) {
  tell("STOP");
  events_.end_marking();
  EXPECT_EQ(since(), milliseconds(0));
  tell("STOP");
  events_.mark_stopped();
  EXPECT_EQ(since(), milliseconds(0));
  events_.begin_marking(since_, clock_);
  tell("STOP");
  EXPECT_EQ(since(), milliseconds(1000));
}

}  // namespace
}  // namespace vmshadow::capture
