#include "capture/disk_capture.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <algorithm>
#include <thread>
#include <utility>

#include <vmshadow/machine.h>

#include "capture/disk_mirror.h"
#include "capture/disk_target.h"
#include "io/socket.h"
#include "nbd/server.h"

namespace vmshadow::capture {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kPassWithin{1000};
constexpr std::chrono::seconds kTellEvery{1};
constexpr milliseconds kFollowEvery{1};
constexpr milliseconds kSteerEvery{10};

/// The first copy's speed: doubled after every second in which less than a
/// sixteenth of what a disk may hold waited, halved whenever it is more than a quarter. QEMU gives
/// a job its share of its speed every 100 ms: at first that is a sixteenth of what may be held, and
/// a quarter at most.
constexpr std::size_t kSlowAbove = 4;
constexpr std::size_t kFastBelow = 16;
constexpr std::uint64_t kSlicesPerSecond = 10;
constexpr std::chrono::seconds kFasterEvery{1};
constexpr std::uint64_t kSlowest = 1 << 20;
/// On its way at once: QEMU's own choice, or less for a small buffer.
constexpr std::uint64_t kInFlightMost = 10 << 20;
/// What the sink takes in one piece.
constexpr std::size_t kBatchPages = 256;

/// A mirror's bitmaps have a bit for each of these: whole pages, and few megabytes of bitmap.
std::uint32_t granularity_of(std::uint64_t disk_bytes) {
  constexpr std::uint64_t kBitsMost = std::uint64_t{1} << 26;
  constexpr std::uint32_t kMost = 1 << 20;
  std::uint32_t granularity = kPageBytes;
  while (granularity < kMost && disk_bytes / granularity > kBitsMost) granularity *= 2;
  return granularity;
}

/// In pieces that share what they point into.
void give(const std::shared_ptr<const WrittenPages>& written, BlockIndex block, PageSink& sink) {
  PageBatch batch;
  written->zeroes().for_each([&](PageRange range) {
    batch.zero_disk_pages.push_back({block, PageNumber{range.first}, range.pages()});
  });
  const auto flush = [&] {
    if (batch.pages.empty() && batch.zero_disk_pages.empty()) return;
    // What keeps the pages alive is the whole of them; the type says bytes.
    batch.storage.push_back(std::shared_ptr<const std::byte[]>(written, nullptr));
    batch.memory_bytes = batch.pages.size() * kPageBytes;
    sink.add(std::exchange(batch, {}));
  };
  flush();
  for (const PageNumber page : written->pages()) {
    batch.pages.push_back({block, page, written->content(page).data()});
    if (batch.pages.size() == kBatchPages) flush();
  }
  flush();
}

BlockIndex block_of(BlockIndex first, std::size_t disk) {
  return BlockIndex{static_cast<std::uint16_t>(first.value + disk)};
}

}  // namespace

/// One disk: its target, the thread that serves it to QEMU, QEMU's mirror.
class DiskCapture::ProtectedDisk {
 public:
  ProtectedDisk(qmp::WritableDisk disk, std::size_t held_bytes_max)
      : disk_(std::move(disk)),
        held_pages_max_(held_bytes_max / kPageBytes),
        target_(std::make_shared<DiskTarget>(disk_.bytes, held_pages_max_)),
        speed_(speed_of_share(kFastBelow)) {}
  ~ProtectedDisk() { stop_serving(); }

  [[nodiscard]] const qmp::WritableDisk& disk() const { return disk_; }

  [[nodiscard]] Status begin(qmp::Session& session, int to_guard) {
    VMSHADOW_ASSIGN(auto ends, io::socket_pair());
    served_ = std::move(ends.first);
    if (to_guard >= 0) {
      const std::byte byte{};
      if (auto passed = io::write_with_fd(to_guard, {&byte, 1}, served_.get(),
                                          io::deadline_after(kPassWithin));
          !passed) {
        spdlog::warn("the guard cannot cut disk '{}' off: {}", disk_.name, passed.error().message);
      }
    }
    server_ = std::thread([this] { serve(); });
    const qmp::MirrorOptions how{
        granularity_of(disk_.bytes),
        std::min<std::uint64_t>(held_pages_max_ * kPageBytes / kFastBelow, kInFlightMost), speed_};
    VMSHADOW_ASSIGN(mirror_,
                    DiskMirror::start(session, disk_, std::move(ends.second), disk_.name, how));
    return {};
  }

  /// Takes note of the mirror's progress; an error if it is not what it should be.
  [[nodiscard]] Status note(const std::vector<qmp::BlockJob>& jobs) {
    progress_ = mirror_->progress_in(jobs);
    VMSHADOW_TRY(check(target_->failure()));
    if (progress_.phase != DiskMirror::Phase::ended) return {};
    return fail(Errc::closed, fmt::format("disk '{}': QEMU has ended its mirror (an error of the "
                                          "disk's, or somebody cancelled the job)",
                                          disk_.name));
  }
  [[nodiscard]] Status check(DiskTarget::Failure failure) const {
    switch (failure) {
      case DiskTarget::Failure::none:
        break;
      case DiskTarget::Failure::overflow:
        return fail(
            Errc::no_space,
            fmt::format("disk '{}': more than {} MiB of it were written while no epoch took "
                        "them (--disk-buffer-mib)",
                        disk_.name, held_pages_max_ * kPageBytes >> 20));
      case DiskTarget::Failure::part_page:
        return fail(Errc::protocol,
                    fmt::format("disk '{}': its mirror copies less than pages", disk_.name));
    }
    return {};
  }
  [[nodiscard]] const DiskMirror::Progress& progress() const { return progress_; }
  /// Of what the mirror knows; one that is at work is behind, whatever it says.
  [[nodiscard]] std::uint64_t behind() const {
    const std::uint64_t left =
        progress_.bytes_total - std::min(progress_.bytes_done, progress_.bytes_total);
    return progress_.at_work ? std::max<std::uint64_t>(left, 1) : left;
  }
  /// Whether what is here and what is not would leave half of the room.
  [[nodiscard]] bool has_room_for(std::uint64_t behind) const {
    return target_->held_pages() + behind / kPageBytes < held_pages_max_ / 2;
  }
  /// While it is looked at, and taken from, every few milliseconds: keeps what is held in bounds.
  [[nodiscard]] Status steer() {
    return progress_.phase == DiskMirror::Phase::copying ? steer_first_copy() : steer_rest();
  }
  /// The guest runs: brings what it has written.
  [[nodiscard]] Status follow() {
    VMSHADOW_TRY(mirror_->go_on());
    return mirror_->limit_speed(0);
  }
  /// Until the next cut is near, what is written gathers in QEMU: there it costs a bit, and a page
  /// that is written again and again is copied once.
  [[nodiscard]] Status rest() { return mirror_->halt(); }

  [[nodiscard]] WrittenPages take() { return target_->cut(); }
  void cut() {
    cut_ = target_->cut();
    failure_at_cut_ = target_->failure();
  }
  [[nodiscard]] Result<WrittenPages> take_cut() {
    VMSHADOW_TRY(check(failure_at_cut_));
    return std::exchange(cut_, {});
  }

  [[nodiscard]] Status stop() {
    Status stopped = mirror_ ? mirror_->stop() : Status{};
    stop_serving();
    return stopped;
  }

 private:
  [[nodiscard]] Status steer_first_copy() {
    const std::size_t held = target_->held_pages();
    const auto now = std::chrono::steady_clock::now();
    if (held > held_pages_max_ / kFastBelow) fast_since_ = now;
    std::uint64_t speed = speed_;
    if (held > held_pages_max_ / kSlowAbove) {
      speed = std::max(speed_ / 2, kSlowest);
    } else if (now - fast_since_ > kFasterEvery) {
      fast_since_ = now;
      speed = std::min(2 * speed_, speed_of_share(kSlowAbove));
    }
    if (speed != speed_) VMSHADOW_TRY(mirror_->limit_speed(speed_ = speed));
    // Nobody takes anything, however slow it is.
    if (held > held_pages_max_ / 2) return mirror_->halt();
    return held < held_pages_max_ / kFastBelow ? mirror_->go_on() : Status{};
  }
  [[nodiscard]] Status steer_rest() {
    const std::size_t held = target_->held_pages();
    if (held > held_pages_max_ / kSlowAbove) return mirror_->halt();
    return held < held_pages_max_ / kFastBelow ? mirror_->go_on() : Status{};
  }
  /// In bytes a second: a slice of time brings this share of what may be held.
  [[nodiscard]] std::uint64_t speed_of_share(std::size_t share) const {
    return held_pages_max_ * kPageBytes / share * kSlicesPerSecond;
  }
  void serve() const {
    const nbd::Export exports[] = {{disk_.name, {}, target_}};
    const auto served = nbd::serve_client(served_.get(), exports);
    // For everybody who has the descriptor: QEMU must not wait for an answer.
    ::shutdown(served_.get(), SHUT_RDWR);
    if (served || served.error().code == Errc::closed) return;
    spdlog::warn("disk '{}': serving its mirror: {}", disk_.name, served.error().message);
  }
  void stop_serving() {
    if (!server_.joinable()) return;
    ::shutdown(served_.get(), SHUT_RDWR);
    server_.join();
  }

  const qmp::WritableDisk disk_;
  const std::size_t held_pages_max_;
  const std::shared_ptr<DiskTarget> target_;
  UniqueFd served_;
  std::thread server_;
  std::unique_ptr<DiskMirror> mirror_;
  DiskMirror::Progress progress_;
  std::uint64_t speed_;
  std::chrono::steady_clock::time_point fast_since_ = std::chrono::steady_clock::now();
  WrittenPages cut_;
  DiskTarget::Failure failure_at_cut_{};
};

DiskCapture::DiskCapture(qmp::Session& session, DiskCaptureOptions options)
    : session_(session), options_(std::move(options)) {}

Result<std::unique_ptr<DiskCapture>> DiskCapture::begin(qmp::Session& session,
                                                        DiskCaptureOptions options) {
  std::unique_ptr<DiskCapture> capture(new DiskCapture(session, std::move(options)));
  VMSHADOW_ASSIGN(auto disks, qmp::query_writable_disks(session));
  for (qmp::WritableDisk& disk : disks) {
    if (disk.node.empty() || disk.bytes == 0 || disk.bytes % kDiskSectorBytes != 0 ||
        disk.bytes > kDiskBytesMax || disk.name.size() > kDiskNameBytesMax) {
      return fail(Errc::unsupported,
                  fmt::format("disk '{}' of {} bytes cannot be protected", disk.name, disk.bytes));
    }
    capture->disks_.push_back(
        std::make_unique<ProtectedDisk>(std::move(disk), capture->options_.held_bytes_max));
  }
  for (const auto& disk : capture->disks_) {
    VMSHADOW_TRY(disk->begin(session, capture->options_.to_guard));
  }
  return capture;
}

DiskCapture::~DiskCapture() {
  if (const auto left = stop(); !left) spdlog::error("leaving the disks: {}", left.error().message);
}

std::vector<qmp::WritableDisk> DiskCapture::disks() const {
  std::vector<qmp::WritableDisk> disks;
  for (const auto& disk : disks_) disks.push_back(disk->disk());
  return disks;
}

// A job says what it has yet to copy as of when it last looked itself: what was written since then
// only the disk's bitmap has. Asked for in this order nothing can slip through between the two.
Result<DiskCapture::Look> DiskCapture::look(bool also_for_dirty_bytes) {
  Look seen;
  if (also_for_dirty_bytes) {
    VMSHADOW_ASSIGN(const auto disks, qmp::query_writable_disks(session_));
    if (disks.size() != disks_.size()) {
      return fail(Errc::closed, "the VM has other disks than before");
    }
    for (const auto& disk : disks_) {
      const auto found = std::find_if(disks.begin(), disks.end(), [&](const auto& candidate) {
        return candidate.name == disk->disk().name;
      });
      if (found == disks.end() || !found->dirty_bytes) {
        return fail(
            Errc::closed,
            fmt::format("disk '{}': QEMU does not tell of its mirror any more", disk->disk().name));
      }
      seen.behind += *found->dirty_bytes;
    }
  }
  VMSHADOW_ASSIGN(const auto jobs, qmp::query_block_jobs(session_));
  for (const auto& disk : disks_) {
    VMSHADOW_TRY(disk->note(jobs));
    if (disk->progress().phase != DiskMirror::Phase::ready) seen.all_ready = false;
    seen.behind += disk->behind();
    seen.done += disk->progress().bytes_done;
    seen.total += disk->progress().bytes_total;
  }
  return seen;
}

Result<bool> DiskCapture::copy(PageSink& sink, BlockIndex first) {
  VMSHADOW_TRY(take_copied(sink, first));
  VMSHADOW_ASSIGN(const Look seen, steer());
  const auto now = std::chrono::steady_clock::now();
  if (options_.on_copy && !seen.all_ready && now - told_ >= kTellEvery) {
    told_ = now;
    options_.on_copy(seen.done, seen.total);
  }
  return seen.all_ready;
}

Status DiskCapture::take_copied(PageSink& sink, BlockIndex first) {
  for (std::size_t i = 0; i < disks_.size(); ++i) {
    VMSHADOW_ASSIGN(const bool room, sink.wait_for_room({}));
    if (!room) continue;
    auto taken = std::make_shared<const WrittenPages>(disks_[i]->take());
    copied_pages_ += taken->content_pages() + taken->zero_pages();
    give(taken, block_of(first, i), sink);
  }
  return {};
}

Result<DiskCapture::Look> DiskCapture::steer() {
  VMSHADOW_ASSIGN(Look seen, look(false));
  for (const auto& disk : disks_) VMSHADOW_TRY(disk->steer());
  return seen;
}

void DiskCapture::steer_beside() {
  beside_ = std::jthread([this](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      // What is wrong shows at the next look.
      if (!steer()) return;
      std::this_thread::sleep_for(kSteerEvery);
    }
  });
}

void DiskCapture::steer_no_more() {
  beside_.request_stop();
  if (beside_.joinable()) beside_.join();
}

Status DiskCapture::check() {
  return look(false).map([](const Look&) {});
}

Result<bool> DiskCapture::follow(milliseconds limit, std::uint64_t behind_most) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  for (;;) {
    VMSHADOW_ASSIGN(const Look seen, look(true));
    if (seen.behind == 0) return true;
    const bool room = std::all_of(disks_.begin(), disks_.end(), [&](const auto& disk) {
      return disk->has_room_for(seen.behind);
    });
    if (!room) return false;
    if (std::chrono::steady_clock::now() >= deadline) return seen.behind <= behind_most;
    for (const auto& disk : disks_) VMSHADOW_TRY(disk->follow());
    std::this_thread::sleep_for(kFollowEvery);
  }
}

// A job that was halted in mid-search for work may have begun more than it said it would. So where
// all seems done it is made to look again, and only then asked once more.
Status DiskCapture::cut(milliseconds limit) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  for (bool seemed_done = false;;) {
    VMSHADOW_ASSIGN(const Look seen, look(!seemed_done));
    if (!seen.all_ready) return fail(Errc::protocol, "a disk is cut before it was copied");
    if (seen.behind == 0 && seemed_done) break;
    seemed_done = seen.behind == 0;
    if (std::chrono::steady_clock::now() >= deadline) {
      return fail(Errc::timed_out, fmt::format("the disks' mirrors are {} bytes behind after {} ms",
                                               seen.behind, limit.count()));
    }
    for (const auto& disk : disks_) VMSHADOW_TRY(disk->follow());
  }
  for (const auto& disk : disks_) disk->cut();
  return {};
}

Result<DiskCapture::Taken> DiskCapture::take_cut() {
  // The cut is whole, whatever becomes of the mirrors now: that the next look tells.
  for (const auto& disk : disks_) static_cast<void>(disk->rest());
  Taken taken;
  taken.pages_ = std::exchange(copied_pages_, 0);
  for (const auto& disk : disks_) {
    VMSHADOW_ASSIGN(auto cut, disk->take_cut());
    auto written = std::make_shared<const WrittenPages>(std::move(cut));
    taken.pages_ += written->content_pages() + written->zero_pages();
    taken.by_disk_.push_back(std::move(written));
  }
  return taken;
}

void DiskCapture::Taken::give_to(PageSink& sink, BlockIndex first) && {
  for (std::size_t i = 0; i < by_disk_.size(); ++i) {
    give(std::exchange(by_disk_[i], nullptr), block_of(first, i), sink);
  }
}

Status DiskCapture::stop() {
  if (std::exchange(stopped_, true)) return {};
  steer_no_more();
  Status first;
  for (const auto& disk : disks_) {
    Status stopped = disk->stop();
    if (first && !stopped) first = std::move(stopped);
  }
  return first;
}

}  // namespace vmshadow::capture
