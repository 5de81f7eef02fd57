// pin, unpin, retention, quota: what changes the store; and its status. Its directory belongs to
// the vmshadow-store that has it open, so that one is asked; if none has, the store is opened here
// for a moment.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>
#include <utility>

#include <vmshadow/clock.h>

#include "app/byte_size.h"
#include "app/control_socket.h"
#include "app/logging.h"
#include "app/replay_commands.h"
#include "app/store_adapter.h"
#include "io/append_file.h"
#include "store/directory.h"
#include "store/reader.h"
#include "store/store.h"

namespace vmshadow::app {
namespace {

/// Sends requests to whoever may change the store.
class StoreCaller {
 public:
  static Result<StoreCaller> open(const std::string& directory) {
    // Never make a store where there is none.
    VMSHADOW_TRY(store::StoreDirectory::open(directory));
    return StoreCaller(directory);
  }

  ControlResponse call(const ControlRequest& request) {
    if (!adapter_) {
      if (auto answer = call_store(directory_, request)) return *std::move(answer);
      VMSHADOW_TRY(open_store());
    }
    return dispatch(*adapter_, request);
  }

 private:
  explicit StoreCaller(std::string directory) : directory_(std::move(directory)) {}

  /// No thinning or moving meanwhile: that is the store's own affair when it runs.
  static store::StoreOptions changes_only() {
    store::StoreOptions options;
    options.background_maintenance = false;
    return options;
  }

  Status open_store() {
    set_up_logging("shadow-replay", false);
    auto opened = store::Store::open(
        directory_, system_clock(), [] { return io::make_file_system(io::FileBackend::automatic); },
        changes_only());
    if (!opened) {
      Error error = std::move(opened).error();
      if (error.code == Errc::in_use) {
        error.message += fmt::format(
            " and serves no {}: it is just starting, or of an older version; try again, or stop it "
            "for the moment",
            kControlSocketName);
      }
      return fail(std::move(error));
    }
    store_ = *std::move(opened);
    adapter_ = std::make_unique<StoreAdapter>(*store_, directory_);
    return {};
  }

  std::string directory_;
  std::unique_ptr<store::Store> store_;
  std::unique_ptr<StoreAdapter> adapter_;
};

template <class Request>
Status for_each_epoch(const ReplayScope& scope, const std::vector<Epoch>& epochs,
                      const char* done_word) {
  VMSHADOW_ASSIGN(StoreCaller store, StoreCaller::open(scope.store));
  std::vector<std::uint64_t> done;
  for (const Epoch epoch : epochs) {
    if (auto answer = store.call(Request{scope.vm, epoch}); !answer) {
      Error error = std::move(answer).error();
      if (!done.empty()) {
        error.message += fmt::format(" ({} before: {})", done_word, fmt::join(done, ", "));
      }
      return fail(std::move(error));
    }
    done.push_back(epoch.value);
  }
  if (scope.json) {
    ReportJson json;
    json["vm"] = scope.vm;
    json[done_word] = done;
    print_json(json);
  } else {
    fmt::print("VM '{}': {} {}\n", scope.vm, done_word, fmt::join(done, ", "));
  }
  return {};
}

}  // namespace

Status pin_epochs(const ReplayScope& scope, const std::vector<Epoch>& epochs) {
  return for_each_epoch<PinRequest>(scope, epochs, "pinned");
}

Status unpin_epochs(const ReplayScope& scope, const std::vector<Epoch>& epochs) {
  return for_each_epoch<UnpinRequest>(scope, epochs, "unpinned");
}

Status show_retention(const ReplayScope& scope) {
  VMSHADOW_ASSIGN(const auto reader, store::Reader::open(scope.store, scope.keys));
  VMSHADOW_ASSIGN(const VmInfo vm, reader->vm(scope.vm));
  std::vector<std::uint64_t> pins;
  for (const EpochInfo& info : vm.epochs) {
    if (info.pinned) pins.push_back(info.epoch.value);
  }
  if (scope.json) {
    ReportJson json;
    json["vm"] = vm.name;
    json["retention"] = vm.retention.empty() ? ReportJson(nullptr) : ReportJson(vm.retention);
    json["pins"] = pins;
    print_json(json);
    return {};
  }
  fmt::print("VM '{}': {}\n", vm.name,
             vm.retention.empty() ? "the store names no policy for it" : vm.retention);
  if (!pins.empty()) fmt::print("pinned: {}\n", fmt::join(pins, ", "));
  return {};
}

Status set_retention(const ReplayScope& scope, const std::string& policy) {
  VMSHADOW_TRY(check_policy_text(policy));
  VMSHADOW_ASSIGN(StoreCaller store, StoreCaller::open(scope.store));
  if (auto answer = store.call(SetRetentionRequest{scope.vm, policy}); !answer) {
    return fail(std::move(answer).error());
  }
  if (!scope.json) {
    fmt::print("VM '{}': retention is now {}\n", scope.vm, policy);
    return {};
  }
  ReportJson json;
  json["vm"] = scope.vm;
  json["retention"] = policy;
  print_json(json);
  return {};
}

Status set_quota(const ReplayScope& scope, std::uint64_t bytes) {
  VMSHADOW_ASSIGN(StoreCaller store, StoreCaller::open(scope.store));
  if (auto answer = store.call(SetQuotaRequest{scope.vm, bytes}); !answer) {
    return fail(std::move(answer).error());
  }
  if (scope.json) {
    ReportJson json;
    json["vm"] = scope.vm;
    json["quota_bytes"] = bytes;
    print_json(json);
  } else if (bytes == 0) {
    fmt::print("VM '{}': no quota\n", scope.vm);
  } else {
    fmt::print("VM '{}': its epochs may take {}\n", scope.vm, size_text(bytes));
  }
  return {};
}

Status show_status(const ReplayScope& scope, const ReplayStatusOptions& options) {
  VMSHADOW_TRY(store::StoreDirectory::open(scope.store));
  auto answer = call_store(scope.store, StatusRequest{});
  if (!answer) {
    return fail(Errc::unsupported,
                fmt::format("no vmshadow-store has '{}' open: start it, or look with list and "
                            "verify, which need none",
                            scope.store));
  }
  if (!*answer) return fail(std::move(*answer).error());
  ReportJson json = **std::move(answer);
  for (ReportJson& tier : json["tiers"]) {
    const auto price = options.prices.find(tier.value("name", ""));
    if (price == options.prices.end()) continue;
    const double gib =
        static_cast<double>(tier.value("stored_bytes", std::uint64_t{0})) / (1 << 30);
    tier["monthly_cost"] = gib * price->second;
  }
  if (scope.json) {
    print_json(json);
    return {};
  }
  const auto size = [](const ReportJson& of, const char* key) {
    return size_text(of.value(key, std::uint64_t{0}));
  };
  fmt::print("store {}, version {}, process {}\n", json.value("directory", ""),
             json.value("version", ""), json.value("pid", 0));
  fmt::print("{} epochs of {} VMs; {} segments in the journal, {} archives\n",
             json.value("epochs", 0ULL), json.value("vms", 0ULL),
             json.value("journal_segments", 0ULL), json.value("archive_segments", 0ULL));
  fmt::print(
      "since it started: {} taken in, {} written, of that {} moved; {} read again, {} times "
      "all\n",
      size(json, "ingested_bytes"), size(json, "written_bytes"), size(json, "moved_bytes"),
      size(json, "scrubbed_bytes"), json.value("scrub_rounds", 0ULL));
  fmt::print(
      "places found damaged: {}; rewritten from them: {} pages that were whole, {} repaired from "
      "other copies, {} lost\n\n",
      json.value("damaged_places", 0ULL), json.value("salvaged_pages", 0ULL),
      json.value("repaired_pages", 0ULL), json.value("lost_pages", 0ULL));
  fmt::print("{:<6} {:>12} {:>12} {:>12} {:>12} {:>12}  {}\n", "tier", "stored", "needed", "spare",
             "read", "may take", "cost");
  for (const ReportJson& tier : json["tiers"]) {
    fmt::print("{:<6} {:>12} {:>12} {:>12} {:>12} {:>12}  {}\n", tier.value("name", ""),
               size(tier, "stored_bytes"), size(tier, "live_bytes"), size(tier, "spare_bytes"),
               size(tier, "read_bytes"),
               tier.value("capacity_bytes", 0ULL) == 0 ? "its disk" : size(tier, "capacity_bytes"),
               tier.contains("monthly_cost")
                   ? fmt::format("{:.2f} a month", tier.value("monthly_cost", 0.0))
                   : "");
  }
  fmt::print("\n{:<24} {:>8} {:>12} {:>12}\n", "VM", "epochs", "needed", "quota");
  for (const ReportJson& vm : json["usage"]) {
    fmt::print("{:<24} {:>8} {:>12} {:>12}\n", vm.value("vm", ""), vm.value("epochs", 0ULL),
               size(vm, "live_bytes"),
               vm.value("quota_bytes", 0ULL) == 0 ? "none" : size(vm, "quota_bytes"));
  }
  return {};
}

}  // namespace vmshadow::app
