#include <time.h>

#include <vmshadow/clock.h>

namespace vmshadow {
namespace {

std::int64_t read_clock(clockid_t id) {
  timespec t{};
  ::clock_gettime(id, &t);  // cannot fail for these two clocks
  return static_cast<std::int64_t>(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}

class SystemClock final : public Clock {
 public:
  [[nodiscard]] MonotonicTime monotonic() const override {
    return MonotonicTime{read_clock(CLOCK_MONOTONIC)};
  }
  [[nodiscard]] WallTime wall() const override { return WallTime{read_clock(CLOCK_REALTIME)}; }
};

}  // namespace

const Clock& system_clock() {
  static const SystemClock clock;
  return clock;
}

}  // namespace vmshadow
