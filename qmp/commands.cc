// See commands.h. Each function checks the form of the reply it reads: QEMU is a peer like another.
#include "qmp/commands.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <array>
#include <string_view>
#include <utility>

#include "qmp/json_fields.h"

namespace vmshadow::qmp {
namespace {

tl::unexpected<Error> malformed(const char* command) {
  return fail(Errc::protocol,
              fmt::format("QEMU's reply to '{}' is not of the documented form", command));
}

/// A command whose reply says nothing but that it was done.
Status run(Session& session, const char* command, const Json& arguments = Json::object()) {
  VMSHADOW_TRY(session.execute(command, arguments));
  return {};
}

/// The text member `key` of a command's reply.
Result<std::string> query_text(Session& session, const char* command, const char* key) {
  VMSHADOW_ASSIGN(const Json reply, session.execute(command));
  const std::string* text = string_member(reply, key);
  if (text == nullptr) return malformed(command);
  return *text;
}

Result<std::string> query_machine_type(Session& session) {
  VMSHADOW_ASSIGN(const Json reply,
                  session.execute("qom-get", {{"path", "/machine"}, {"property", "type"}}));
  const auto* type = reply.get_ptr<const std::string*>();
  if (type == nullptr) return malformed("qom-get");
  constexpr std::string_view kSuffix = "-machine";
  std::string name = *type;
  if (name.ends_with(kSuffix)) name.resize(name.size() - kSuffix.size());
  return name;
}

/// Whether a device of this type keeps state that the stream does not carry, and why.
const char* type_obstacle(std::string_view type) {
  if (type.starts_with("vfio-")) {
    return "a passed-through host device keeps its state in hardware; detach it";
  }
  if (type.starts_with("vhost-vdpa-") || type.starts_with("vdpa")) {
    return "a vDPA device keeps its state in hardware; detach it";
  }
  // These are served by another process, but QEMU knows all of their state; where that process
  // lacks something, QEMU itself reports a blocker.
  for (const std::string_view carried : {"vhost-user-blk", "vhost-user-scsi", "vhost-user-vsock"}) {
    if (type.starts_with(carried)) return nullptr;
  }
  if (type.starts_with("vhost-user-")) {
    return "another process holds this device's state and QEMU does not carry it; detach it";
  }
  return nullptr;
}

/// "child<TYPE>" of a qom-list entry; empty for a plain property.
std::string_view child_type(std::string_view type) {
  constexpr std::string_view kOpening = "child<";
  if (!type.starts_with(kOpening) || !type.ends_with('>')) return {};
  return type.substr(kOpening.size(), type.size() - kOpening.size() - 1);
}

Status find_device_obstacles(Session& session, const std::string& folder,
                             std::vector<Obstacle>& found) {
  VMSHADOW_ASSIGN(const Json entries, session.execute("qom-list", {{"path", folder}}));
  if (!entries.is_array()) return malformed("qom-list");
  for (const Json& entry : entries) {
    const std::string* name = string_member(entry, "name");
    const std::string* type = string_member(entry, "type");
    if (name == nullptr || type == nullptr) return malformed("qom-list");
    const std::string_view device = child_type(*type);
    if (const char* reason = type_obstacle(device); reason != nullptr) {
      found.push_back({fmt::format("{}/{} ({})", folder, *name, device), reason});
    }
  }
  return {};
}

/// What QEMU itself says (blocked-reasons: 6.0 and newer).
Status find_migration_blockers(Session& session, std::vector<Obstacle>& found) {
  VMSHADOW_ASSIGN(const Json reply, session.execute("query-migrate"));
  const Json* reasons = member(reply, "blocked-reasons");
  if (reasons == nullptr) return {};
  if (!reasons->is_array()) return malformed("query-migrate");
  for (const Json& reason : *reasons) {
    const auto* text = reason.get_ptr<const std::string*>();
    if (text == nullptr) return malformed("query-migrate");
    found.push_back({"the machine", *text});
  }
  return {};
}

Result<RunState> read_status(const Json& reply) {
  const std::string* status = string_member(reply, "status");
  const auto running = bool_member(reply, "running");
  if (status == nullptr || !running) return malformed("query-status");
  return RunState{*running, *status};
}

}  // namespace

Result<RunState> query_status(Session& session) {
  VMSHADOW_ASSIGN(const Json reply, session.execute("query-status"));
  return read_status(reply);
}

Result<RunState> query_status(Session& session, std::chrono::milliseconds timeout) {
  VMSHADOW_ASSIGN(const Json reply, session.execute("query-status", Json::object(), timeout));
  return read_status(reply);
}

bool is_at_rest(std::string_view migration_status) {
  for (const std::string_view at_rest : {"none", "completed", "failed", "cancelled"}) {
    if (migration_status == at_rest) return true;
  }
  return false;
}

bool MigrationInfo::active() const { return !is_at_rest(status); }

Result<MigrationInfo> query_migrate(Session& session) {
  VMSHADOW_ASSIGN(const Json reply, session.execute("query-migrate"));
  if (!reply.is_object()) return malformed("query-migrate");
  MigrationInfo info;
  info.status = "none";
  for (const auto& [key, into] :
       {std::pair{"status", &info.status}, std::pair{"error-desc", &info.error}}) {
    if (member(reply, key) == nullptr) continue;
    const std::string* text = string_member(reply, key);
    if (text == nullptr) return malformed("query-migrate");
    *into = *text;
  }
  if (const Json* ram = member(reply, "ram"); ram != nullptr && ram->is_object()) {
    info.ram_passes = unsigned_member(*ram, "dirty-sync-count").value_or(0);
  }
  return info;
}

Status migrate_set_capabilities(Session& session, const std::map<std::string, bool>& capabilities) {
  Json list = Json::array();
  for (const auto& [name, on] : capabilities) list.push_back({{"capability", name}, {"state", on}});
  return run(session, "migrate-set-capabilities", {{"capabilities", std::move(list)}});
}

Result<std::map<std::string, bool>> query_migrate_capabilities(Session& session) {
  VMSHADOW_ASSIGN(const Json reply, session.execute("query-migrate-capabilities"));
  if (!reply.is_array()) return malformed("query-migrate-capabilities");
  std::map<std::string, bool> capabilities;
  for (const Json& entry : reply) {
    const std::string* name = string_member(entry, "capability");
    const auto on = bool_member(entry, "state");
    if (name == nullptr || !on) return malformed("query-migrate-capabilities");
    capabilities[*name] = *on;
  }
  return capabilities;
}

Status migrate_set_parameters(Session& session, const Json& parameters) {
  return run(session, "migrate-set-parameters", parameters);
}

Result<Json> query_migrate_parameters(Session& session) {
  VMSHADOW_ASSIGN(Json reply, session.execute("query-migrate-parameters"));
  if (!reply.is_object()) return malformed("query-migrate-parameters");
  return reply;
}

Status migrate(Session& session, const std::string& uri) {
  return run(session, "migrate", {{"uri", uri}});
}

Status migrate_cancel(Session& session) { return run(session, "migrate_cancel"); }

Status migrate_incoming(Session& session, const std::string& uri) {
  return run(session, "migrate-incoming", {{"uri", uri}});
}

Status getfd(Session& session, const std::string& name, int fd) {
  VMSHADOW_TRY(session.execute_with_fd("getfd", {{"fdname", name}}, fd));
  return {};
}

Status closefd(Session& session, const std::string& name) {
  return run(session, "closefd", {{"fdname", name}});
}

Status colo_lost_heartbeat(Session& session) { return run(session, "x-colo-lost-heartbeat"); }

Status yank_migration(Session& session) {
  VMSHADOW_TRY(
      session.execute_oob("yank", {{"instances", Json::array({{{"type", "migration"}}})}}));
  return {};
}

Status cont(Session& session) { return run(session, "cont"); }
Status stop(Session& session) { return run(session, "stop"); }

Status quit(Session& session) {
  if (auto ended = session.closed()) return fail(*std::move(ended));
  const auto reply = session.execute("quit");
  // QEMU may be gone before its reply has left: that is what was asked for.
  if (!reply && reply.error().code != Errc::closed) return fail(reply.error());
  return {};
}

Result<std::vector<std::string>> query_commands(Session& session) {
  VMSHADOW_ASSIGN(const Json reply, session.execute("query-commands"));
  if (!reply.is_array()) return malformed("query-commands");
  std::vector<std::string> names;
  for (const Json& entry : reply) {
    const std::string* name = string_member(entry, "name");
    if (name == nullptr) return malformed("query-commands");
    names.push_back(*name);
  }
  return names;
}

Result<MachineFacts> query_machine(Session& session) {
  MachineFacts facts;
  facts.qemu_version = session.version().text();
  VMSHADOW_ASSIGN(facts.machine_type, query_machine_type(session));

  VMSHADOW_ASSIGN(const Json kvm, session.execute("query-kvm"));
  const auto enabled = bool_member(kvm, "enabled");
  if (!enabled) return malformed("query-kvm");
  facts.kvm = *enabled;

  VMSHADOW_ASSIGN(const Json memory, session.execute("query-memory-size-summary"));
  const auto base = unsigned_member(memory, "base-memory");
  if (!base) return malformed("query-memory-size-summary");
  facts.ram_bytes = *base;

  VMSHADOW_ASSIGN(facts.uuid, query_text(session, "query-uuid", "UUID"));

  VMSHADOW_ASSIGN(const Json name, session.execute("query-name"));
  if (!name.is_object()) return malformed("query-name");
  if (const std::string* text = string_member(name, "name")) facts.name = *text;
  return facts;
}

Result<bool> suppresses_description(Session& session) {
  VMSHADOW_ASSIGN(const Json reply, session.execute("qom-get", {{"path", "/machine"},
                                                                {"property", "suppress-vmdesc"}}));
  if (!reply.is_boolean()) return malformed("qom-get");
  return reply.get<bool>();
}

Result<std::vector<Obstacle>> find_obstacles(Session& session) {
  std::vector<Obstacle> found;
  VMSHADOW_TRY(find_device_obstacles(session, "/machine/peripheral", found));
  VMSHADOW_TRY(find_device_obstacles(session, "/machine/peripheral-anon", found));
  VMSHADOW_TRY(find_migration_blockers(session, found));
  return found;
}

namespace {

/// Of bitmaps that nobody has named: a block job's.
std::optional<std::uint64_t> dirty_bytes_of(const Json& inserted) {
  std::optional<std::uint64_t> bytes;
  const auto bitmaps = inserted.find("dirty-bitmaps");
  if (bitmaps == inserted.end() || !bitmaps->is_array()) return bytes;
  for (const Json& bitmap : *bitmaps) {
    if (!bitmap.is_object() || bitmap.contains("name")) continue;
    const auto count = unsigned_member(bitmap, "count");
    if (count) bytes = bytes.value_or(0) + *count;
  }
  return bytes;
}

}  // namespace

Result<std::vector<WritableDisk>> query_writable_disks(Session& session) {
  VMSHADOW_ASSIGN(const Json reply, session.execute("query-block"));
  // A reply that is misread as "no disks" would let a VM with unprotected ones pass.
  if (!reply.is_array()) return malformed("query-block");
  std::vector<WritableDisk> disks;
  for (const Json& disk : reply) {
    if (!disk.is_object()) return malformed("query-block");
    const Json* inserted = member(disk, "inserted");
    if (inserted == nullptr || bool_member(*inserted, "ro").value_or(false)) continue;
    for (const char* key : {"qdev", "device"}) {
      const std::string* name = string_member(disk, key);
      if (name == nullptr || name->empty()) continue;
      WritableDisk& found = disks.emplace_back();
      found.name = *name;
      if (const std::string* node = string_member(*inserted, "node-name")) found.node = *node;
      found.dirty_bytes = dirty_bytes_of(*inserted);
      if (const std::string* driver = string_member(*inserted, "drv")) found.format = *driver;
      if (const std::string* file = string_member(*inserted, "file")) found.file = *file;
      if (const Json* image = member(*inserted, "image")) {
        found.bytes = unsigned_member(*image, "virtual-size").value_or(0);
      }
      break;
    }
  }
  return disks;
}

Result<std::vector<std::string>> query_block_nodes(Session& session) {
  VMSHADOW_ASSIGN(const Json reply, session.execute("query-named-block-nodes", {{"flat", true}}));
  if (!reply.is_array()) return malformed("query-named-block-nodes");
  std::vector<std::string> nodes;
  for (const Json& node : reply) {
    const std::string* name = string_member(node, "node-name");
    if (name == nullptr) return malformed("query-named-block-nodes");
    nodes.push_back(*name);
  }
  return nodes;
}

Result<std::vector<BlockJob>> query_block_jobs(Session& session) {
  VMSHADOW_ASSIGN(const Json reply, session.execute("query-block-jobs"));
  if (!reply.is_array()) return malformed("query-block-jobs");
  std::vector<BlockJob> jobs;
  for (const Json& job : reply) {
    const std::string* id = string_member(job, "device");
    if (id == nullptr) return malformed("query-block-jobs");
    jobs.push_back(
        {*id, bool_member(job, "ready").value_or(false), bool_member(job, "busy").value_or(true),
         unsigned_member(job, "offset").value_or(0), unsigned_member(job, "len").value_or(0)});
  }
  return jobs;
}

Status blockdev_add_nbd(Session& session, const std::string& node, const std::string& fd_name,
                        const std::string& export_name) {
  return run(session, "blockdev-add",
             {{"driver", "nbd"},
              {"node-name", node},
              {"export", export_name},
              {"reconnect-delay", 0},
              {"server", {{"type", "fd"}, {"str", fd_name}}}});
}

Status blockdev_del(Session& session, const std::string& node) {
  return run(session, "blockdev-del", {{"node-name", node}});
}

Status blockdev_mirror(Session& session, const std::string& job, const std::string& node,
                       const std::string& target, const MirrorOptions& options) {
  return run(session, "blockdev-mirror",
             {{"job-id", job},
              {"device", node},
              {"target", target},
              {"speed", options.bytes_per_second},
              {"granularity", options.granularity},
              {"buf-size", options.buffer_bytes},
              {"sync", "full"},
              {"copy-mode", "background"},
              {"on-source-error", "report"},
              {"on-target-error", "report"}});
}

Status block_job_set_speed(Session& session, const std::string& job,
                           std::uint64_t bytes_per_second) {
  return run(session, "block-job-set-speed", {{"device", job}, {"speed", bytes_per_second}});
}

Status block_job_pause(Session& session, const std::string& job) {
  return run(session, "block-job-pause", {{"device", job}});
}

Status block_job_resume(Session& session, const std::string& job) {
  return run(session, "block-job-resume", {{"device", job}});
}

Status block_job_cancel(Session& session, const std::string& job) {
  return run(session, "block-job-cancel", {{"device", job}, {"force", true}});
}

Status pmemsave(Session& session, std::uint64_t address, std::uint64_t bytes,
                const std::string& path) {
  return run(session, "pmemsave", {{"val", address}, {"size", bytes}, {"filename", path}});
}

}  // namespace vmshadow::qmp
