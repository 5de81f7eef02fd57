#include "io/uring.h"

#include <liburing.h>
#include <sys/uio.h>

#include <cerrno>
#include <deque>
#include <vector>

#include "base/assert.h"

namespace vmshadow::io {
namespace {

/// A write is cut at about this size so that several run side by side.
constexpr std::size_t kWriteBytes = std::size_t{1} << 20;
constexpr std::size_t kVectorsPerWrite = 256;
constexpr std::uint64_t kSyncTag = ~std::uint64_t{0};

/// One writev that is not done yet: its vectors shrink as short writes advance it.
struct PendingWrite {
  std::vector<iovec> vectors;
  std::uint64_t offset{};
  std::size_t bytes{};

  void advance(std::size_t count) {
    VMSHADOW_ASSERT(count <= bytes);
    bytes -= count;
    offset += count;
    std::size_t whole = 0;
    while (whole < vectors.size() && count >= vectors[whole].iov_len) {
      count -= vectors[whole++].iov_len;
    }
    vectors.erase(vectors.begin(), vectors.begin() + static_cast<std::ptrdiff_t>(whole));
    if (count > 0) {
      vectors.front().iov_base = static_cast<std::byte*>(vectors.front().iov_base) + count;
      vectors.front().iov_len -= count;
    }
  }
};

std::deque<PendingWrite> plan_writes(std::span<const ByteSpan> pieces, std::uint64_t offset) {
  std::deque<PendingWrite> writes;
  for (ByteSpan piece : pieces) {
    while (!piece.empty()) {
      if (writes.empty() || writes.back().bytes >= kWriteBytes ||
          writes.back().vectors.size() >= kVectorsPerWrite) {
        writes.push_back({{}, offset, 0});
      }
      const ByteSpan part = piece.first(std::min(piece.size(), kWriteBytes));
      writes.back().vectors.push_back({const_cast<std::byte*>(part.data()), part.size()});
      writes.back().bytes += part.size();
      offset += part.size();
      piece = piece.subspan(part.size());
    }
  }
  return writes;
}

}  // namespace

struct Uring::Ring {
  io_uring ring{};
  bool ready{};
  ~Ring() {
    if (ready) ::io_uring_queue_exit(&ring);
  }

  /// What one round of submissions came to.
  struct Round {
    int error{};         ///< errno of the first failure that is no mere retry
    bool all_written{};  ///< every write of the round was complete
    bool synced{};       ///< a sync ran behind complete writes
  };
  /// Submits up to kUringWritesInFlight of `writes` (and, if these are all, the sync), waits for
  /// them, and drops the finished ones.
  Round run(int fd, std::deque<PendingWrite>& writes, bool sync);

 private:
  void submit_and_wait(unsigned count);
  io_uring_sqe& next_entry() {
    io_uring_sqe* entry = ::io_uring_get_sqe(&ring);
    VMSHADOW_ASSERT(entry != nullptr);  // the ring holds a whole round
    return *entry;
  }
};

void Uring::Ring::submit_and_wait(unsigned count) {
  while (true) {
    const int rc = ::io_uring_submit_and_wait(&ring, count);
    if (rc >= 0 && ::io_uring_sq_ready(&ring) == 0 && ::io_uring_cq_ready(&ring) >= count) return;
    // The ring is ours and the entries are valid: what remains are interruptions and shortages that
    // pass (EINTR, EAGAIN, EBUSY).
    VMSHADOW_ASSERT(rc >= 0 || rc == -EINTR || rc == -EAGAIN || rc == -EBUSY);
  }
}

Uring::Ring::Round Uring::Ring::run(int fd, std::deque<PendingWrite>& writes, bool sync) {
  const std::size_t write_count = std::min<std::size_t>(writes.size(), kUringWritesInFlight);
  const bool sync_now = sync && write_count == writes.size();
  for (std::size_t i = 0; i < write_count; ++i) {
    io_uring_sqe& entry = next_entry();
    ::io_uring_prep_writev(&entry, fd, writes[i].vectors.data(),
                           static_cast<unsigned>(writes[i].vectors.size()), writes[i].offset);
    ::io_uring_sqe_set_data64(&entry, i);
    // A link makes the kernel start the sync by itself; a short write breaks it.
    if (sync_now && write_count == 1) entry.flags |= IOSQE_IO_LINK;
  }
  if (sync_now) {
    io_uring_sqe& entry = next_entry();
    ::io_uring_prep_fsync(&entry, fd, IORING_FSYNC_DATASYNC);
    ::io_uring_sqe_set_data64(&entry, kSyncTag);
    if (write_count > 1) entry.flags |= IOSQE_IO_DRAIN;
  }
  const unsigned count = static_cast<unsigned>(write_count) + (sync_now ? 1u : 0u);
  submit_and_wait(count);

  Round round;
  int sync_result = -ECANCELED;
  for (unsigned i = 0; i < count; ++i) {
    io_uring_cqe* completion = nullptr;
    const int rc = ::io_uring_peek_cqe(&ring, &completion);
    VMSHADOW_ASSERT(rc == 0 && completion != nullptr);
    const int result = completion->res;
    const std::uint64_t tag = completion->user_data;
    ::io_uring_cqe_seen(&ring, completion);
    if (tag == kSyncTag) {
      sync_result = result;
    } else if (result > 0) {
      writes[tag].advance(static_cast<std::size_t>(result));
    } else if (result != -EINTR && result != -EAGAIN && round.error == 0) {
      round.error = result == 0 ? EIO : -result;
    }
  }
  std::erase_if(writes, [](const PendingWrite& write) { return write.bytes == 0; });
  round.all_written = writes.empty();
  round.synced = round.all_written && sync_now && sync_result == 0;
  if (round.error == 0 && sync_now && sync_result < 0 && sync_result != -ECANCELED &&
      sync_result != -EINTR) {
    round.error = -sync_result;
  }
  return round;
}

Uring::Uring(std::unique_ptr<Ring> ring) : ring_(std::move(ring)) {}
Uring::~Uring() = default;

Result<std::unique_ptr<Uring>> Uring::create() {
  auto ring = std::make_unique<Ring>();
  // Twice the entries of a round: a sync always fits behind its writes.
  const int rc = ::io_uring_queue_init(2 * kUringWritesInFlight, &ring->ring, 0);
  if (rc == -ENOSYS || rc == -EPERM || rc == -EACCES) {
    return fail(Errc::unsupported,
                "io_uring is not available here (see /proc/sys/kernel/io_uring_disabled and the "
                "sandbox's system call filter)");
  }
  if (rc < 0) return fail_errno(-rc, "setting up io_uring");
  ring->ready = true;
  return std::unique_ptr<Uring>(new Uring(std::move(ring)));
}

Status Uring::write(int fd, std::span<const ByteSpan> pieces, std::uint64_t offset, bool sync) {
  std::deque<PendingWrite> writes = plan_writes(pieces, offset);
  while (!writes.empty() || sync) {
    const Ring::Round round = ring_->run(fd, writes, sync);
    if (round.error != 0) return fail_errno(round.error, "writing");
    if (round.synced) return {};
  }
  return {};
}

}  // namespace vmshadow::io
