#include "scenario/store_adapter.h"

#include <type_traits>
#include <utility>

#include "io/append_file.h"
#include "store/retention.h"

namespace vmshadow::bench {
namespace {

// Abilities are asked for by `requires`, so that this file needs no change when the store gains
// them. (They must be templates: only there is a missing member an answer and not an error.)

template <class S>
constexpr bool kMaintains = requires(S& store) {
  store.maintain();
};
template <class S>
constexpr bool kHasStats = requires(const S& store) {
  store.stats();
};

template <class Options>
Status apply(const StoreSetup& setup, Options& options) {
  options.log.segment_bytes = setup.segment_bytes;
  if constexpr (requires { options.background_maintenance; }) {
    options.background_maintenance = setup.background_maintenance;
  }
  if constexpr (requires { options.retention; }) {
    if (!setup.retention.empty()) {
      VMSHADOW_ASSIGN(options.retention, store::parse_policy(setup.retention));
    }
  }
  return {};
}

template <class S>
Status maintain_if_it_can(S& store) {
  if constexpr (kMaintains<S>) {
    if constexpr (std::is_void_v<decltype(store.maintain())>) {
      store.maintain();
    } else {
      VMSHADOW_TRY(store.maintain());
    }
  }
  return {};
}

template <class S>
std::optional<store::StoreStats> stats_if_it_has(const S& store) {
  if constexpr (kHasStats<S>) {
    return store.stats();
  } else {
    return std::nullopt;
  }
}

}  // namespace

Result<std::unique_ptr<store::Store>> open_store(const StoreSetup& setup) {
  VMSHADOW_ASSIGN(auto files, io::make_file_system(io::FileBackend::automatic));
  store::StoreOptions options;
  VMSHADOW_TRY(apply(setup, options));
  return store::Store::open(setup.directory, *setup.clock, std::move(files), options);
}

bool store_maintains() { return kMaintains<store::Store>; }
Status maintain(store::Store& store) { return maintain_if_it_can(store); }
std::optional<store::StoreStats> stats_of(const store::Store& store) {
  return stats_if_it_has(store);
}

}  // namespace vmshadow::bench
