// A VM that is made up, for a source of full passes: its monitor, and the migration it sends. Each
// pass follows its script; whatever is not scripted goes as with QEMU: a migration that loses its
// reader before it was told to complete fails, and the VM runs on.
#pragma once

#include <nlohmann/json.hpp>
#include <poll.h>

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "io/socket.h"
#include "support/migration_stream_builder.h"
#include "support/scripted_monitor.h"

namespace vmshadow::test {

class ScriptedVm {
 public:
  using Json = nlohmann::json;

  struct Pass {
    MigrationStreamBuilder::Blocks blocks = {{"pc.ram", 16 * kPageBytes}};
    unsigned fill = 1;  ///< of every page
    /// Refused at once, with this reason.
    std::string refusal{};
    /// The reason is somebody else's migration, begun just before.
    bool intruder = false;
    /// In the midst of RAM the VM is stopped with this state, by somebody else.
    std::string stopped_in_ram{};
    /// What the device state says of the VM.
    std::string state_at_cut = "running";
    bool events = true;  ///< STOP and RESUME
    enum class End {
      completes,
      goes_on,          ///< the guest writes faster than it is read
      closes_in_ram,    ///< QEMU ends its stream
      no_end_of_ram,    ///< device state where RAM should end
      stalls_in_tail,   ///< and its reader must give up
      never_completes,  ///< told to complete, it does nothing
      fails_when_told,  ///< told to complete, it fails, and QEMU resumes the VM
      dies_when_told,   ///< the monitor ends instead
    };
    End end = End::completes;
    int cont_refusals = 0;  ///< before `cont` works
    /// It does not stop before let_it_stop().
    bool stops_when_let = false;
    /// While the VM stands still a query-migrate is not answered before QEMU was told to complete;
    /// one is waited for.
    bool look_waits_for_word = false;
    bool closes = true;  ///< its stream, a moment after it has completed
  };

  explicit ScriptedVm(const std::string& path)
      : monitor_(path, "7.2.22", [this](const Json& command) { return answer(command); }) {}
  ~ScriptedVm() {
    ending_ = true;
    end_stream();
  }

  /// For the next `migrate` that has none yet.
  void script(Pass pass) {
    const std::lock_guard lock(mutex_);
    passes_.push_back(std::move(pass));
  }
  void set_cont_refusals(int refusals) {
    const std::lock_guard lock(mutex_);
    pass_.cont_refusals = refusals;
  }
  /// As somebody else's migration, or the end of one, leaves it.
  void set_migration(const std::string& status) {
    const std::lock_guard lock(mutex_);
    migration_ = status;
  }
  /// The same, as soon as parameters are set.
  void set_migration_at_parameters(const std::string& status) {
    const std::lock_guard lock(mutex_);
    migration_at_parameters_ = status;
  }
  void set_run_state(const std::string& state) {
    const std::lock_guard lock(mutex_);
    run_state_ = state;
  }
  void set_block_jobs(std::vector<std::string> jobs) {
    const std::lock_guard lock(mutex_);
    block_jobs_ = std::move(jobs);
  }
  void let_it_stop() {
    const std::lock_guard lock(mutex_);
    may_stop_ = true;
    told_.notify_all();
  }
  /// A query-migrate was answered at last without QEMU having been told to complete.
  [[nodiscard]] bool look_waited_in_vain() const {
    const std::lock_guard lock(mutex_);
    return look_waited_in_vain_;
  }
  [[nodiscard]] std::string run_state() const {
    const std::lock_guard lock(mutex_);
    return run_state_;
  }
  [[nodiscard]] Json parameters() const {
    const std::lock_guard lock(mutex_);
    return parameters_;
  }
  [[nodiscard]] std::map<std::string, bool> capabilities() const {
    const std::lock_guard lock(mutex_);
    return capabilities_;
  }
  [[nodiscard]] bool stream_was_closed_at_cont() const {
    const std::lock_guard lock(mutex_);
    return stream_was_closed_at_cont_;
  }
  [[nodiscard]] std::size_t heard(const std::string& command) const {
    std::size_t count = 0;
    for (const std::string& name : monitor_.heard()) count += name == command ? 1 : 0;
    return count;
  }

 private:
  static Json returns(Json value = Json::object()) { return {{"return", std::move(value)}}; }
  static Json refuses(const std::string& why, const std::string& error_class = "GenericError") {
    return {{"error", {{"class", error_class}, {"desc", why}}}};
  }

  Json answer(const Json& command) {
    const std::string name = command.value("execute", "");
    if (name == "migrate") return begin(command["arguments"]["uri"].get<std::string>());
    if (name == "cont") return resume();
    if (name == "query-migrate") hold_look();
    if (name == "migrate_cancel") {
      end_stream();
      const std::lock_guard lock(mutex_);
      if (migration_ == "active") migration_ = "cancelled";
      return returns();
    }
    const std::lock_guard lock(mutex_);
    if (name == "query-status") {
      return returns({{"status", run_state_}, {"running", run_state_ == "running"}});
    }
    if (name == "query-migrate") {
      return returns(migration_ == "none"
                         ? Json::object()
                         : Json{{"status", migration_}, {"ram", {{"dirty-sync-count", 1}}}});
    }
    if (name == "query-migrate-capabilities") {
      Json list = Json::array();
      for (const auto& [capability, on] : capabilities_) {
        list.push_back({{"capability", capability}, {"state", on}});
      }
      return returns(list);
    }
    if (name == "migrate-set-capabilities") {
      if (migration_ == "active") return refuses("There's a migration process in progress");
      for (const Json& one : command["arguments"]["capabilities"]) {
        capabilities_[one["capability"]] = one["state"];
      }
      return returns();
    }
    if (name == "query-migrate-parameters") return returns(parameters_);
    if (name == "migrate-set-parameters") {
      parameters_.update(command["arguments"]);
      if (!migration_at_parameters_.empty())
        migration_ = std::exchange(migration_at_parameters_, {});
      return returns();
    }
    if (name == "query-block-jobs") {
      Json jobs = Json::array();
      for (const std::string& id : block_jobs_) jobs.push_back({{"device", id}});
      return returns(jobs);
    }
    if (name == "qom-list") return returns(Json::array());
    if (name == "qom-get") {
      const bool type = command["arguments"]["property"] == "type";
      return returns(type ? Json("pc-i440fx-7.2-machine") : Json(false));
    }
    if (name == "query-kvm") return returns({{"enabled", false}});
    if (name == "query-memory-size-summary") return returns({{"base-memory", 16 * kPageBytes}});
    if (name == "query-uuid") return returns({{"UUID", "0"}});
    if (name == "query-name") return returns();
    return refuses(name + " has not been found", "CommandNotFound");  // getfd as well
  }

  Json begin(const std::string& uri) {
    end_stream();
    const std::lock_guard lock(mutex_);
    pass_ = Pass{};
    may_stop_ = look_waits_ = word_came_ = false;
    if (!passes_.empty()) {
      pass_ = std::move(passes_.front());
      passes_.pop_front();
    }
    if (pass_.intruder) migration_ = "active";
    if (!pass_.refusal.empty()) return refuses(pass_.refusal);
    migration_ = "active";
    stream_is_closed_ = false;
    stream_ = std::thread(
        [this, path = uri.substr(uri.find(':') + 1), pass = pass_] { send_pass(path, pass); });
    return returns();
  }

  Json resume() {
    bool closes = false;
    bool events = false;
    {
      const std::lock_guard lock(mutex_);
      if (run_state_ != "running" && pass_.cont_refusals > 0) {
        --pass_.cont_refusals;
        return refuses("Migration is not finalized yet");
      }
      stream_was_closed_at_cont_ = stream_is_closed_;
      closes = pass_.closes;
      events = pass_.events && run_state_ != "running";
      run_state_ = "running";
    }
    if (events) monitor_.tell("RESUME");
    if (closes) end_stream();
    return returns();
  }

  void send_pass(const std::string& path, const Pass& pass) {
    auto connected = io::connect_unix(path, patience());
    if (!connected) return;
    UniqueFd fd = *std::move(connected);
    MigrationStreamBuilder ram;
    ram.header().configuration().ram_start(pass.blocks).part();
    for (const auto& [name, bytes] : pass.blocks) {
      for (std::uint64_t at = 0; at < bytes; at += kPageBytes) ram.page(name, at, pass.fill);
    }
    ram.eos().footer();
    put(fd.get(), ram.bytes);
    if (pass.end == Pass::End::closes_in_ram) return fail();
    if (pass.end == Pass::End::no_end_of_ram) {
      put(fd.get(), MigrationStreamBuilder().u8(0).bytes);
      return wait_for_end(fd.get());
    }
    if (!pass.stopped_in_ram.empty()) {
      set_run_state(pass.stopped_in_ram);
      monitor_.tell("STOP");
    }
    // Of a VM that somebody else has stopped QEMU goes on sending, too.
    if (pass.end == Pass::End::goes_on || !pass.stopped_in_ram.empty()) {
      const auto more = MigrationStreamBuilder().part().zero("pc.ram", 0).eos().footer().bytes;
      while (!ending_ && put(fd.get(), more)) ::poll(nullptr, 0, 2);
      return fail();
    }

    if (pass.stops_when_let) wait_for(may_stop_);
    set_run_state("finish-migrate");
    if (pass.events) monitor_.tell("STOP");
    if (pass.look_waits_for_word) wait_for(look_waits_);
    MigrationStreamBuilder tail;
    tail.end().eos().footer().text("\x04 devices ").global_state(pass.state_at_cut).u8(0);
    if (pass.end != Pass::End::stalls_in_tail) tail.u8(6).b32(2).text("{}");
    put(fd.get(), tail.bytes);

    std::array<std::byte, 8> word;
    if (!io::read_exact(fd.get(), word, patience())) return fail();
    {
      const std::lock_guard lock(mutex_);
      word_came_ = true;
      told_.notify_all();
    }
    switch (pass.end) {
      case Pass::End::never_completes:
        return wait_for_end(fd.get());
      case Pass::End::fails_when_told:
        return fail();
      case Pass::End::dies_when_told:
        return monitor_.hang_up();
      default:
        break;
    }
    set_run_state("postmigrate");
    set_migration("completed");
    monitor_.tell("MIGRATION", {{"status", "completed"}});
    if (!pass.closes) return wait_until_told();
    ::poll(nullptr, 0, 2);
    fd.reset();
    const std::lock_guard lock(mutex_);
    stream_is_closed_ = true;
  }

  /// Until the reader closes its end, or the migration is cancelled.
  void wait_for_end(int fd) {
    std::array<std::byte, 8> rest;
    while (!ending_) {
      const auto got = io::read_some(fd, rest, io::deadline_after(std::chrono::milliseconds(10)));
      if (got ? *got == 0 : got.error().code != Errc::timed_out) break;
    }
    fail();
  }

  /// A migration that did not complete: QEMU resumes what it has stopped, and nothing else.
  void fail() {
    bool resumed = false;
    {
      const std::lock_guard lock(mutex_);
      migration_ = "failed";
      resumed = run_state_ == "finish-migrate";
      if (resumed) run_state_ = "running";
    }
    if (resumed) monitor_.tell("RESUME");
    monitor_.tell("MIGRATION", {{"status", "failed"}});
  }

  void wait_until_told() {
    std::unique_lock lock(mutex_);
    told_.wait_for(lock, std::chrono::seconds(30), [&] { return ending_.load(); });
  }
  void wait_for(const bool& what) {
    std::unique_lock lock(mutex_);
    told_.wait_for(lock, std::chrono::seconds(30), [&] { return what || ending_; });
  }
  void hold_look() {
    std::unique_lock lock(mutex_);
    if (!pass_.look_waits_for_word || run_state_ != "finish-migrate" || word_came_) return;
    look_waits_ = true;
    told_.notify_all();
    look_waited_in_vain_ =
        !told_.wait_for(lock, std::chrono::seconds(5), [&] { return word_came_ || ending_; });
  }
  void end_stream() {
    if (!stream_.joinable()) return;
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    told_.notify_all();
    stream_.join();
    ending_ = false;
  }

  /// False if nobody reads any more; that shows elsewhere too.
  static bool put(int fd, ByteSpan bytes) {
    return io::write_all(fd, bytes, patience()).has_value();
  }
  static io::Deadline patience() { return io::deadline_after(std::chrono::seconds(30)); }

  mutable std::mutex mutex_;
  std::condition_variable told_;
  std::atomic<bool> ending_{false};
  std::string run_state_ = "running";
  std::string migration_ = "none";
  std::map<std::string, bool> capabilities_ = {
      {"return-path", false}, {"events", false}, {"xbzrle", true}};
  Json parameters_ = {{"max-bandwidth", 1000}, {"downtime-limit", 77}};
  std::vector<std::string> block_jobs_;
  bool may_stop_ = false, look_waits_ = false, word_came_ = false;  // of this pass
  bool look_waited_in_vain_ = false;
  bool stream_is_closed_ = false, stream_was_closed_at_cont_ = false;
  std::string migration_at_parameters_;
  std::deque<Pass> passes_;
  Pass pass_;
  std::thread stream_;       // of the monitor's thread
  ScriptedMonitor monitor_;  // last: its thread uses all of the above
};

}  // namespace vmshadow::test
