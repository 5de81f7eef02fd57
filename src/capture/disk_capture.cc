#include "capture/disk_capture.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>

#include "base/assert.h"
#include "capture/disk_content.h"
#include "capture/disk_mirror.h"
#include "capture/disk_reader.h"
#include "capture/disk_target.h"
#include "capture/qemu_process.h"
#include "io/socket.h"
#include "nbd/server.h"
#include "qmp/commands.h"

namespace vmshadow::capture {
namespace {

using std::chrono::milliseconds;

constexpr int kExportsSafeFrom = 9;
constexpr const char* kListenerName = "vmshadow-disks";
constexpr std::string_view kExportPrefix = "vmshadow-disk-";
constexpr milliseconds kPassWithin{1000};
constexpr milliseconds kConnectWithin{5000};
constexpr std::chrono::seconds kTellEvery{1};
/// Of what a disk may hold, what the first copy may take before it is halted, and the share below
/// which it goes on: the rest is the guest's.
constexpr std::size_t kHaltAbove = 4;
constexpr std::size_t kGoOnBelow = 16;
/// Bytes a second: as good as none, but not the 0 that means "no limit".
constexpr std::uint64_t kHaltedSpeed = 1;
/// What the sink takes in one piece.
constexpr std::size_t kBatchPages = 256;

/// In pieces that share what they point into.
void give(const std::shared_ptr<const WrittenPages>& written, BlockIndex block, PageSink& sink) {
  const auto storage = [&] {
    // What keeps the pages alive is the whole of them; the type says bytes.
    return std::shared_ptr<const std::byte[]>(written, nullptr);
  };
  PageBatch batch;
  written->zeroes().for_each([&](PageRange range) {
    batch.zero_disk_pages.push_back({block, PageNumber{range.first}, range.pages()});
  });
  const auto flush = [&] {
    if (batch.pages.empty() && batch.zero_disk_pages.empty()) return;
    batch.storage.push_back(storage());
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

/// One disk: its target, the thread that serves it to QEMU, QEMU's mirror, the reader.
class DiskCapture::ProtectedDisk {
 public:
  ProtectedDisk(qmp::WritableDisk disk, std::size_t held_bytes_max)
      : disk_(std::move(disk)),
        held_pages_max_(held_bytes_max / kPageBytes),
        target_(std::make_shared<DiskTarget>(disk_.bytes, held_pages_max_)) {}
  ~ProtectedDisk() { stop_serving(); }

  [[nodiscard]] const qmp::WritableDisk& disk() const { return disk_; }
  [[nodiscard]] DiskTarget& target() { return *target_; }

  void read_from(std::unique_ptr<DiskContent> content) {
    reader_ = std::make_unique<DiskReader>(std::move(content), *target_);
  }
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
    VMSHADOW_ASSIGN(mirror_, DiskMirror::start(session, disk_, std::move(ends.second), disk_.name));
    return {};
  }

  /// Keeps the first copy within bounds. The mirror's progress.
  [[nodiscard]] Result<DiskMirror::Progress> steer() {
    VMSHADOW_ASSIGN(const DiskMirror::Progress progress, checked_progress());
    const std::size_t held = target_->held_pages();
    const bool halt =
        halted_ ? held > held_pages_max_ / kGoOnBelow : held > held_pages_max_ / kHaltAbove;
    if (progress.phase == DiskMirror::Phase::copying && halt != halted_) {
      VMSHADOW_TRY(mirror_->limit_speed(halt ? kHaltedSpeed : 0));
      halted_ = halt;
    }
    return progress;
  }
  /// An error if the mirror is not what it should be.
  [[nodiscard]] Result<DiskMirror::Progress> checked_progress() {
    VMSHADOW_ASSIGN(const DiskMirror::Progress progress, mirror_->progress());
    if (target_->overflowed()) {
      return fail(
          Errc::no_space,
          fmt::format("disk '{}': its guest wrote more than {} MiB while no epoch took them",
                      disk_.name, held_pages_max_ * kPageBytes >> 20));
    }
    if (progress.phase == DiskMirror::Phase::ended) {
      return fail(Errc::closed, fmt::format("disk '{}': QEMU has ended its mirror (an error of the "
                                            "disk's, or somebody cancelled the job)",
                                            disk_.name));
    }
    return progress;
  }

  void cut() { cut_ = target_->cut(); }
  /// After a cut. An error, or whether what it took is known as a whole.
  [[nodiscard]] Result<bool> check_cut() {
    VMSHADOW_ASSERT(cut_);
    VMSHADOW_ASSIGN(const DiskMirror::Progress progress, checked_progress());
    if (progress.phase != DiskMirror::Phase::ready || !cut_->whole) {
      return fail(Errc::protocol,
                  fmt::format("disk '{}' is not in step with its mirror any more", disk_.name));
    }
    if (cut_->written.incomplete().empty()) return true;
    if (auto failure = reader_->failure()) {
      return fail(std::move(*failure).with_context(fmt::format("disk '{}'", disk_.name)));
    }
    return false;
  }
  void put_back() {
    target_->put_back(std::move(cut_->written));
    cut_.reset();
  }
  [[nodiscard]] std::shared_ptr<const WrittenPages> take() {
    auto taken = std::make_shared<const WrittenPages>(std::move(cut_->written));
    cut_.reset();
    return taken;
  }

  [[nodiscard]] Status stop() {
    reader_.reset();
    Status stopped = mirror_ ? mirror_->stop() : Status{};
    stop_serving();
    return stopped;
  }

 private:
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
  std::unique_ptr<DiskReader> reader_;
  std::unique_ptr<DiskMirror> mirror_;
  bool halted_ = false;
  std::optional<DiskTarget::Cut> cut_;
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
  VMSHADOW_TRY(capture->begin_reading());
  VMSHADOW_TRY(capture->begin_disks());
  return capture;
}

// QEMU's NBD server would be the way to read any disk; but before 9.0 QEMU aborts where the device
// of an exported disk leaves its iothread, as it does each time the VM stops, in mid-request.
Status DiskCapture::begin_reading() {
  if (disks_.empty()) return {};
  VMSHADOW_ASSIGN(const bool iothreads, qmp::has_iothreads(session_));
  const bool exports_end_qemu = iothreads && session_.version().major < kExportsSafeFrom;
  return exports_end_qemu ? read_images() : read_exports();
}

Status DiskCapture::read_images() {
  const auto qemu = find_qemu_process(session_);
  for (const auto& disk : disks_) {
    const qmp::WritableDisk& facts = disk->disk();
    const auto of_disk = [&](const std::string& why) {
      return fail(Errc::unsupported,
                  fmt::format("disk '{}': under QEMU {} with iothreads only raw images that are "
                              "files or block devices of this host can be protected: {}",
                              facts.name, session_.version().text(), why));
    };
    if (facts.format != "raw" || facts.file.find(':') != std::string::npos) {
      return of_disk(fmt::format("this one is {} '{}'", facts.format, facts.file));
    }
    if (!qemu) return of_disk("and QEMU's process is not to be seen from here");
    auto content = open_raw_image(qemu->pid, facts.file, facts.bytes);
    if (!content) return of_disk(content.error().message);
    disk->read_from(*std::move(content));
  }
  return {};
}

// Under a path only for as long as it takes us to connect; QEMU has the listening socket itself.
Status DiskCapture::read_exports() {
  char directory[] = "/tmp/vmshadow-XXXXXX";
  if (::mkdtemp(directory) == nullptr) return fail_errno(errno, "making a socket directory");
  const std::string path = fmt::format("{}/disks", directory);
  auto begun = [&]() -> Status {
    UniqueFd listener;
    VMSHADOW_ASSIGN(listener, io::listen_unix(path));
    VMSHADOW_TRY(qmp::getfd(session_, kListenerName, listener.get()));
    if (auto started = qmp::nbd_server_start(session_, kListenerName); !started) {
      static_cast<void>(qmp::closefd(session_, kListenerName));
      if (started.error().code != Errc::in_use) return started;
      return fail(Errc::in_use,
                  "QEMU's NBD server, of which it has one, is in use (a backup?): disks can be "
                  "protected when it has ended (nbd-server-stop)");
    }
    serves_ = true;
    for (std::size_t i = 0; i < disks_.size(); ++i) {
      const std::string id = fmt::format("{}{}", kExportPrefix, i);
      VMSHADOW_TRY(qmp::block_export_add(session_, id, disks_[i]->disk().node));
      VMSHADOW_ASSIGN(auto connection, io::connect_unix(path, io::deadline_after(kConnectWithin)));
      VMSHADOW_ASSIGN(auto content,
                      open_export(std::move(connection), id, disks_[i]->disk().bytes));
      disks_[i]->read_from(std::move(content));
    }
    return {};
  }();
  ::unlink(path.c_str());
  ::rmdir(directory);
  return begun;
}

Status DiskCapture::begin_disks() {
  for (const auto& disk : disks_) VMSHADOW_TRY(disk->begin(session_, options_.to_guard));
  return {};
}

DiskCapture::~DiskCapture() {
  if (const auto left = stop(); !left) spdlog::error("leaving the disks: {}", left.error().message);
}

std::vector<qmp::WritableDisk> DiskCapture::disks() const {
  std::vector<qmp::WritableDisk> disks;
  for (const auto& disk : disks_) disks.push_back(disk->disk());
  return disks;
}

Result<bool> DiskCapture::copy(PageSink& sink, BlockIndex first) {
  bool all_ready = true;
  std::uint64_t done = 0;
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < disks_.size(); ++i) {
    VMSHADOW_ASSIGN(const DiskMirror::Progress progress, disks_[i]->steer());
    if (progress.phase != DiskMirror::Phase::ready) all_ready = false;
    done += progress.bytes_done;
    total += progress.bytes_total;
    VMSHADOW_ASSIGN(const bool room, sink.wait_for_room({}));
    if (!room) continue;
    auto taken = std::make_shared<const WrittenPages>(disks_[i]->target().take_complete());
    give(taken, block_of(first, i), sink);
  }
  const auto now = std::chrono::steady_clock::now();
  if (options_.on_copy && now - told_ >= kTellEvery) {
    told_ = now;
    options_.on_copy(done, total);
  }
  return all_ready;
}

void DiskCapture::wait_until_known(milliseconds limit) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  for (const auto& disk : disks_) {
    const auto left = deadline - std::chrono::steady_clock::now();
    static_cast<void>(disk->target().wait_until_known(
        std::max(milliseconds{0}, std::chrono::duration_cast<milliseconds>(left))));
  }
}

void DiskCapture::cut() {
  for (const auto& disk : disks_) disk->cut();
}

Result<std::unique_ptr<DiskCapture::Taken>> DiskCapture::take_cut() {
  bool known = true;
  for (const auto& disk : disks_) {
    VMSHADOW_ASSIGN(const bool all, disk->check_cut());
    known = known && all;
  }
  if (!known) {
    for (const auto& disk : disks_) disk->put_back();
    return nullptr;
  }
  auto taken = std::make_unique<Taken>();
  for (const auto& disk : disks_) {
    taken->by_disk_.push_back(disk->take());
    taken->pages_ += taken->by_disk_.back()->content_pages() + taken->by_disk_.back()->zero_pages();
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
  Status first;
  const auto keep = [&](Status status) {
    if (first && !status) first = std::move(status);
  };
  for (const auto& disk : disks_) keep(disk->stop());
  if (serves_) keep(qmp::nbd_server_stop(session_));
  return first;
}

Result<bool> leave_disks(qmp::Session& session) {
  VMSHADOW_ASSIGN(bool any, end_mirrors(session));
  VMSHADOW_ASSIGN(const auto exports, qmp::query_block_exports(session));
  const bool ours = std::any_of(exports.begin(), exports.end(), [](const std::string& id) {
    return id.starts_with(kExportPrefix);
  });
  if (!ours) return any;
  VMSHADOW_TRY(qmp::nbd_server_stop(session));
  return true;
}

}  // namespace vmshadow::capture
