#include "capture/disk_mirror.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cctype>
#include <optional>
#include <span>
#include <thread>
#include <utility>

#include "base/hash.h"
#include "io/socket.h"

namespace vmshadow::capture {
namespace {

constexpr std::string_view kJobPrefix = "vmshadow-mirror-";
constexpr std::string_view kNodePrefix = "vmshadow-target-";
/// QEMU's node names end here.
constexpr std::size_t kNodeNameBytesMax = 31;
constexpr std::chrono::milliseconds kAskAgain{5};

/// Of the disk's name, which may be a path in QEMU's object tree: what a job's id and a node's name
/// may have, its end rather than its beginning, and not what another disk has.
std::string short_name(const std::string& disk) {
  std::string name;
  for (const char c : disk) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '.';
    name += plain ? c : '_';
  }
  const std::size_t room = kNodeNameBytesMax - kNodePrefix.size();
  if (name.size() <= room && name == disk) return name;
  // It only has to tell the disks of one VM apart.
  const std::string tail =
      fmt::format("-{:08x}", checksum64(std::as_bytes(std::span(disk))) & 0xffffffff);
  const std::size_t kept = std::min(name.size(), room - tail.size());
  return name.substr(name.size() - kept) + tail;
}

auto find_job(const std::vector<qmp::BlockJob>& jobs, const std::string& id) {
  return std::find_if(jobs.begin(), jobs.end(), [&](const auto& job) { return job.id == id; });
}

/// Cancels the job if there is one, and waits for its end.
Status end_job(qmp::Session& session, const std::string& id, io::Deadline deadline) {
  bool asked = false;
  while (true) {
    VMSHADOW_ASSIGN(const auto jobs, qmp::query_block_jobs(session));
    if (find_job(jobs, id) == jobs.end()) return {};
    if (!asked) {
      // One that ends by itself meanwhile is refused, and is gone at the next look.
      static_cast<void>(qmp::block_job_cancel(session, id));
      asked = true;
    }
    if (io::Deadline::clock::now() >= deadline) {
      return fail(Errc::timed_out, fmt::format("QEMU's block job '{}' does not end", id));
    }
    std::this_thread::sleep_for(kAskAgain);
  }
}

/// A node stays in use for a moment after its job has gone.
Status remove_node(qmp::Session& session, const std::string& node, io::Deadline deadline) {
  while (true) {
    auto removed = qmp::blockdev_del(session, node);
    if (removed || io::Deadline::clock::now() >= deadline) return removed;
    VMSHADOW_ASSIGN(const auto nodes, qmp::query_block_nodes(session));
    if (std::find(nodes.begin(), nodes.end(), node) == nodes.end()) return {};
    std::this_thread::sleep_for(kAskAgain);
  }
}

}  // namespace

DiskMirror::DiskMirror(qmp::Session& session, qmp::WritableDisk disk)
    : session_(session),
      disk_(std::move(disk)),
      job_(std::string(kJobPrefix) + short_name(disk_.name)),
      node_(std::string(kNodePrefix) + short_name(disk_.name)) {}

Result<std::unique_ptr<DiskMirror>> DiskMirror::start(qmp::Session& session,
                                                      const qmp::WritableDisk& disk,
                                                      UniqueFd connection,
                                                      const std::string& export_name,
                                                      const qmp::MirrorOptions& options) {
  const auto of_disk = [&](Error error) {
    return fail(std::move(error).with_context(fmt::format("mirroring disk '{}'", disk.name)));
  };
  if (disk.node.empty() || disk.bytes == 0) {
    return of_disk({Errc::unsupported, "QEMU does not tell its block node and its length"});
  }
  std::unique_ptr<DiskMirror> mirror(new DiskMirror(session, disk));
  if (auto passed = qmp::getfd(session, mirror->node_, connection.get()); !passed) {
    mirror->stopped_ = true;
    return of_disk(std::move(passed).error());
  }
  connection.reset();
  if (auto added = qmp::blockdev_add_nbd(session, mirror->node_, mirror->node_, export_name);
      !added) {
    mirror->stopped_ = true;
    // Taken already, unless QEMU did not get as far as that.
    static_cast<void>(qmp::closefd(session, mirror->node_));
    return of_disk(std::move(added).error());
  }
  // From here on the destructor has something to take out again.
  if (auto begun = qmp::blockdev_mirror(session, mirror->job_, disk.node, mirror->node_, options);
      !begun) {
    return of_disk(std::move(begun).error());
  }
  return mirror;
}

DiskMirror::~DiskMirror() {
  if (const auto left = stop(); !left) {
    spdlog::error("leaving disk '{}': {}", disk_.name, left.error().message);
  }
}

Result<DiskMirror::Progress> DiskMirror::progress() {
  VMSHADOW_ASSIGN(const auto jobs, qmp::query_block_jobs(session_));
  return progress_in(jobs);
}

DiskMirror::Progress DiskMirror::progress_in(const std::vector<qmp::BlockJob>& jobs) const {
  const auto job = find_job(jobs, job_);
  if (job == jobs.end()) return {};
  return {job->ready ? Phase::ready : Phase::copying, job->done, job->total, job->busy};
}

Status DiskMirror::limit_speed(std::uint64_t bytes_per_second) {
  return qmp::block_job_set_speed(session_, job_, bytes_per_second);
}

Status DiskMirror::halt() {
  if (halted_) return {};
  VMSHADOW_TRY(qmp::block_job_pause(session_, job_));
  halted_ = true;
  return {};
}

Status DiskMirror::go_on() {
  if (!halted_) return {};
  VMSHADOW_TRY(qmp::block_job_resume(session_, job_));
  halted_ = false;
  return {};
}

Status DiskMirror::stop(std::chrono::milliseconds within) {
  if (std::exchange(stopped_, true)) return {};
  const auto deadline = io::deadline_after(within);
  VMSHADOW_TRY(end_job(session_, job_, deadline));
  return remove_node(session_, node_, deadline);
}

Result<bool> end_mirrors(qmp::Session& session, std::chrono::milliseconds within) {
  const auto deadline = io::deadline_after(within);
  bool any = false;
  VMSHADOW_ASSIGN(const auto jobs, qmp::query_block_jobs(session));
  for (const qmp::BlockJob& job : jobs) {
    if (!job.id.starts_with(kJobPrefix)) continue;
    VMSHADOW_TRY(end_job(session, job.id, deadline));
    any = true;
  }
  VMSHADOW_ASSIGN(const auto nodes, qmp::query_block_nodes(session));
  for (const std::string& node : nodes) {
    if (!node.starts_with(kNodePrefix)) continue;
    VMSHADOW_TRY(remove_node(session, node, deadline));
    any = true;
  }
  return any;
}

}  // namespace vmshadow::capture
