// The floor under every pause: a COLO secondary that discards all it reads.
//
// It speaks the same protocol and acknowledges at the same points as ColoSource, but reads into one
// small buffer that stays in the cache, keeps no page, and hands nothing on. What a pause costs
// with it is what QEMU's own work costs.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

#include <vmshadow/page_sink.h>
#include <vmshadow/result.h>

#include "base/unique_fd.h"
#include "capture/migration_stream.h"
#include "capture/vm_events.h"
#include "qmp/session.h"

namespace vmshadow::bench {

class DiscardingSecondary {
 public:
  /// `session`'s events go to `events`; both outlive it.
  DiscardingSecondary(qmp::Session& session, const capture::VmEvents& events);
  ~DiscardingSecondary();

  struct Epoch {
    std::uint64_t pages{};
    std::optional<std::chrono::microseconds> pause;
  };
  [[nodiscard]] Status attach();
  [[nodiscard]] Result<Epoch> take_epoch();
  [[nodiscard]] Status detach();

 private:
  [[nodiscard]] Result<capture::MigrationStream::Event> next();
  [[nodiscard]] Status send(std::initializer_list<capture::ColoMessage> messages);
  [[nodiscard]] Status expect(capture::MigrationStream::Event event);

  qmp::Session& session_;
  const capture::VmEvents& events_;
  UniqueFd fd_;
  capture::MigrationStream stream_;
  std::vector<std::byte> buffer_;
  std::size_t parsed_ = 0;
  std::size_t filled_ = 0;
  std::vector<PageRef> pages_;
  bool attached_ = false;
};

}  // namespace vmshadow::bench
