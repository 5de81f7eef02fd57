// pin, unpin and retention: what changes the store. Its directory belongs to the vmshadow-store
// that has it open, so that one is asked; if none has, the store is opened here for a moment.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>
#include <utility>

#include <vmshadow/clock.h>

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
  VMSHADOW_ASSIGN(const auto reader, store::Reader::open(scope.store));
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

}  // namespace vmshadow::app
