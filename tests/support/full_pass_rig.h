// A guest under full passes, and what is asked of it afterwards.
#pragma once

#include <chrono>
#include <string>

#include "qmp/commands.h"
#include "support/fault_rig.h"

namespace vmshadow::test {

inline SidecarConfig by_full_passes(const FaultRig& rig, const std::string& store) {
  SidecarConfig config = rig.config(store);
  config.extra_args = {"--source", "full-pass"};
  return config;
}

inline SidecarProgram protect_by_full_passes(const FaultRig& rig, const StoreProgram& store,
                                             bool once = true) {
  SidecarConfig config = by_full_passes(rig, store.address());
  config.once = once;
  SidecarProgram sidecar = must(SidecarProgram::start(config));
  must(sidecar.wait_for_epochs(3, io::deadline_after(kFaultPatience)));
  return sidecar;
}

inline void wait_for_text(const SidecarProgram& sidecar, const std::string& words) {
  wait_until([&] { return sidecar.messages().find(words) != std::string::npos; });
}

inline std::string run_state(qmp::Session& observer) {
  return must(qmp::query_status(observer)).text;
}

/// What a sidecar that ends in order leaves of QEMU's settings: all that was there before.
inline void expect_settings_untouched(FaultRig& rig) {
  const auto parameters = must(qmp::query_migrate_parameters(*rig.observer()));
  EXPECT_EQ(parameters.at("max-bandwidth"), 128 << 20);
  EXPECT_EQ(parameters.at("downtime-limit"), 300);
  const auto capabilities = must(qmp::query_migrate_capabilities(*rig.observer()));
  EXPECT_FALSE(capabilities.at("return-path"));
  EXPECT_FALSE(capabilities.at("events"));
}

}  // namespace vmshadow::test
