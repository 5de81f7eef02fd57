// Reads from a running VM's disk what its mirror's target lacks: the rest of pages that the guest
// wrote in part. A thread of its own; no guest waits for it.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include <vmshadow/result.h>

#include "capture/disk_content.h"
#include "capture/disk_target.h"

namespace vmshadow::capture {

class DiskReader {
 public:
  /// `target` outlives the reader.
  DiskReader(std::unique_ptr<DiskContent> disk, DiskTarget& target);
  /// Ends the target's wait_for_unknown() with it.
  ~DiskReader();
  DiskReader(const DiskReader&) = delete;
  DiskReader& operator=(const DiskReader&) = delete;

  /// Why it does not read any more; nullopt while it does.
  [[nodiscard]] std::optional<Error> failure() const;

 private:
  void run();

  const std::unique_ptr<DiskContent> disk_;
  DiskTarget& target_;
  mutable std::mutex mutex_;
  std::optional<Error> failure_;  // under the mutex
  std::thread thread_;            // last: uses all of the above
};

}  // namespace vmshadow::capture
