// The commands this project uses, typed. Each is one round trip on a Session; errors are those of
// Session::execute(), or Errc::protocol for a reply that is not of the documented form
// (QEMU QMP Reference Manual).
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <vmshadow/result.h>

#include "qmp/session.h"

namespace vmshadow::qmp {

/// RunState of query-status, the ones we tell apart; `other` keeps the text.
struct RunState {
  bool running{};
  std::string text;  ///< "running", "paused", "colo", "guest-panicked", …
};
[[nodiscard]] Result<RunState> query_status(Session& session);
[[nodiscard]] Result<RunState> query_status(Session& session, std::chrono::milliseconds timeout);

/// Whether this migration status is that of none under way.
[[nodiscard]] bool is_at_rest(std::string_view migration_status);

/// `status` of query-migrate: "none" if the reply has none; and its error-desc.
struct MigrationInfo {
  std::string status;
  std::string error;
  std::uint64_t ram_passes{};         ///< begun over the dirty pages so far; 0 if QEMU does not say
  [[nodiscard]] bool active() const;  ///< setup, active, device, colo, cancelling, …: not at rest
};
[[nodiscard]] Result<MigrationInfo> query_migrate(Session& session);

[[nodiscard]] Status migrate_set_capabilities(Session& session,
                                              const std::map<std::string, bool>& capabilities);
/// Names of all capabilities this QEMU knows, with their present values.
[[nodiscard]] Result<std::map<std::string, bool>> query_migrate_capabilities(Session& session);
[[nodiscard]] Status migrate_set_parameters(Session& session, const Json& parameters);
[[nodiscard]] Result<Json> query_migrate_parameters(Session& session);
[[nodiscard]] Status migrate(Session& session, const std::string& uri);
[[nodiscard]] Status migrate_cancel(Session& session);
[[nodiscard]] Status migrate_incoming(Session& session, const std::string& uri);

/// Hands `fd` to QEMU under `name` (for uri "fd:NAME").
[[nodiscard]] Status getfd(Session& session, const std::string& name, int fd);
[[nodiscard]] Status closefd(Session& session, const std::string& name);

[[nodiscard]] Status colo_lost_heartbeat(Session& session);
/// Cuts the migration's own connections, out of band: frees a QEMU that is stuck in sending to a
/// reader that does not read. Errc::unsupported where the monitor has no oob.
[[nodiscard]] Status yank_migration(Session& session);
[[nodiscard]] Status cont(Session& session);
[[nodiscard]] Status stop(Session& session);
[[nodiscard]] Status quit(Session& session);

[[nodiscard]] Result<std::vector<std::string>> query_commands(Session& session);
struct MachineFacts {
  std::string qemu_version;
  std::string machine_type;   ///< the running machine's versioned name, "pc-i440fx-7.2"
  bool kvm{};                 ///< KVM is the accelerator in use
  std::uint64_t ram_bytes{};  ///< base memory
  std::string uuid;
  std::string name;  ///< -name, may be empty
};
[[nodiscard]] Result<MachineFacts> query_machine(Session& session);

/// Whether the machine leaves the description out that else ends a migration stream.
[[nodiscard]] Result<bool> suppresses_description(Session& session);

/// A device qom path and type that cannot be captured by a RAM+device-state stream (VFIO and the
/// like: anything QEMU reports as a migration blocker, and types starting with "vfio-" or
/// "vhost-user-"/"vdpa" without migration support), with the reason in words. Empty if all is well.
struct Obstacle {
  std::string device;
  std::string reason;
};
[[nodiscard]] Result<std::vector<Obstacle>> find_obstacles(Session& session);

/// A disk with a medium that the guest may write to.
struct WritableDisk {
  std::string name;       ///< its qdev id, qdev path or device name
  std::string node;       ///< the block node right under its device
  std::string format;     ///< that node's driver: "raw", "qcow2", …
  std::string file;       ///< its image, as QEMU calls it: a path, a URI, "json:…"
  std::uint64_t bytes{};  ///< as the guest sees it
  /// What a mirror has yet to begin to copy; nullopt if there is none.
  std::optional<std::uint64_t> dirty_bytes;
};
[[nodiscard]] Result<std::vector<WritableDisk>> query_writable_disks(Session& session);

/// The names of all block nodes.
[[nodiscard]] Result<std::vector<std::string>> query_block_nodes(Session& session);

/// A block job that exists, running or not.
struct BlockJob {
  std::string id;
  bool ready{};           ///< of a mirror: all was copied, what is written since follows
  bool busy{};            ///< it is at work just now
  std::uint64_t done{};   ///< of `total`, in units of the job's own
  std::uint64_t total{};  ///< may grow while the job runs
};
[[nodiscard]] Result<std::vector<BlockJob>> query_block_jobs(Session& session);

/// Adds a block node that is a client of the NBD export at the other end of a connected socket,
/// which QEMU has under `fd_name` (getfd). When that breaks it is not made anew: requests fail.
[[nodiscard]] Status blockdev_add_nbd(Session& session, const std::string& node,
                                      const std::string& fd_name, const std::string& export_name);
[[nodiscard]] Status blockdev_del(Session& session, const std::string& node);
struct MirrorOptions {
  std::uint32_t granularity{};       ///< bytes that are copied whole where one of them was written
  std::uint64_t buffer_bytes{};      ///< at most on their way at once
  std::uint64_t bytes_per_second{};  ///< as in block_job_set_speed()
};
/// Copies all of `node` to `target`, and goes on copying what is written since. No guest's write
/// waits for that, or fails with it; an error of either node ends the job.
[[nodiscard]] Status blockdev_mirror(Session& session, const std::string& job,
                                     const std::string& node, const std::string& target,
                                     const MirrorOptions& options);
/// Bytes a second, 0: no limit. A job that rests looks for work at once when it is set to 0. A
/// mirror that is ready takes no notice of it.
[[nodiscard]] Status block_job_set_speed(Session& session, const std::string& job,
                                         std::uint64_t bytes_per_second);
/// Halts a job; what is on its way is still done. Errors if it is halted already.
[[nodiscard]] Status block_job_pause(Session& session, const std::string& job);
/// Lets it go on. Errors if it is not halted.
[[nodiscard]] Status block_job_resume(Session& session, const std::string& job);
/// Ends a job at once, wherever it is; it is gone a while later.
[[nodiscard]] Status block_job_cancel(Session& session, const std::string& job);

/// Saves guest-physical memory to a file that QEMU creates.
[[nodiscard]] Status pmemsave(Session& session, std::uint64_t address, std::uint64_t bytes,
                              const std::string& path);

}  // namespace vmshadow::qmp
