#include "capture/disk_reader.h"

#include <array>
#include <span>
#include <utility>

namespace vmshadow::capture {
namespace {

/// Pages that are asked for at once.
constexpr std::size_t kAtOnce = 16;

}  // namespace

DiskReader::DiskReader(std::unique_ptr<DiskContent> disk, DiskTarget& target)
    : disk_(std::move(disk)), target_(target), thread_([this] { run(); }) {}

DiskReader::~DiskReader() {
  target_.wake();
  disk_->close();
  thread_.join();
}

std::optional<Error> DiskReader::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

void DiskReader::run() {
  std::array<std::byte, kAtOnce * kPageBytes> contents;
  for (;;) {
    const DiskTarget::Unknown unknown = target_.wait_for_unknown(kAtOnce);
    if (unknown.pages.empty()) return;
    if (auto done = disk_->read(unknown.pages, contents); !done) {
      const std::lock_guard lock(mutex_);
      failure_ = std::move(done).error();
      return;
    }
    for (std::size_t i = 0; i < unknown.pages.size(); ++i) {
      target_.complete(unknown.term, unknown.pages[i],
                       std::span(contents).subspan(i * kPageBytes, kPageBytes));
    }
  }
}

}  // namespace vmshadow::capture
