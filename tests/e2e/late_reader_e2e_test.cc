// A host without free processors lets the capture read late what QEMU has sent early. The VM runs
// by then, and the guard must know: it would end protections that harm nobody, one after the other.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <utility>

#include "capture/colo_source.h"
#include "capture/vm_events.h"
#include "qmp/commands.h"
#include "support/fault_rig.h"
#include "support/prerequisite.h"
#include "support/ram_image_sink.h"

namespace vmshadow::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

/// Is late at an epoch's first pages, until the guard's clock stands.
class LateSink final : public PageSink {
 public:
  explicit LateSink(const std::atomic<std::int64_t>& stopped_since)
      : stopped_since_(stopped_since) {}
  void begin_epoch(const EpochBegin& begin) override {
    late_ = !begin.full;
    image_.begin_epoch(begin);
  }
  void add(PageBatch batch) override {
    if (std::exchange(late_, false)) {
      const auto deadline = io::deadline_after(seconds(10));
      while (stopped_since_ != 0 && io::Deadline::clock::now() < deadline) {
        std::this_thread::sleep_for(milliseconds(1));
      }
      stood_ = stopped_since_ == 0;
    }
    image_.add(std::move(batch));
  }
  void end_epoch(EpochEnd end) override { image_.end_epoch(std::move(end)); }
  void abandon_epoch() override { image_.abandon_epoch(); }
  [[nodiscard]] Result<bool> wait_for_room(std::chrono::nanoseconds) override { return true; }
  /// The clock stood before the pages were taken.
  [[nodiscard]] bool stood() const { return stood_; }

 private:
  const std::atomic<std::int64_t>& stopped_since_;
  RamImageSink image_;
  bool late_ = false, stood_ = false;
};

TEST(LateReader, KeepsTheGuardsClockNoLongerThanTheVmStandsStill) {
  GuestConfig config;
  config.witness = {"arena_mib=8", "pages=200"};
  VMSHADOW_REQUIRE(guest_available(config));
  const auto guest = must(QemuGuest::start(config));
  must(guest->wait_for_reports(5, io::deadline_after(seconds(60))));
  capture::VmEvents events;
  qmp::SessionOptions options;
  options.on_event = [&](const qmp::Event& event) { events.handle(event); };
  const auto session = must(qmp::Session::connect(guest->qmp_path(), options));
  std::atomic<std::int64_t> stopped_since{0};
  capture::ColoOptions how;
  how.stopped_since_ns = &stopped_since;
  LateSink sink(stopped_since);
  capture::ColoSource source(*session, events, system_clock(), how);
  must(source.attach(sink, Epoch{0}));
  EXPECT_EQ(stopped_since, 0);
  std::this_thread::sleep_for(milliseconds(50));  // some pages to read
  must(source.take_epoch());
  EXPECT_TRUE(sink.stood());
  EXPECT_EQ(stopped_since, 0);
  must(source.detach());
}

}  // namespace
}  // namespace vmshadow::test
