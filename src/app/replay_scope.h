// What shadow-replay's subcommands share: which store, VM and epoch is meant.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include <vmshadow/result.h>
#include <vmshadow/shadow_reader.h>
#include <vmshadow/types.h>

#include "app/replay_reports.h"
#include "crypt/key_source.h"
#include "store/reader.h"

namespace vmshadow::app {

struct ReplayScope {
  std::string store;  ///< its directory
  std::string vm;     ///< empty: all of them, or the only one
  bool json = false;
  std::shared_ptr<const crypt::KeySource> keys;  ///< null: none were given
};

/// One JSON object on stdout.
void print_json(const ReportJson& json);

/// The VM asked for, or the only one there is.
[[nodiscard]] Result<VmInfo> choose_vm(const ShadowReader& reader, const std::string& name);
/// The epoch asked for, or the newest; says on stderr if newer ones are lost to damage.
/// Errc::corrupt names the damage that keeps the epoch from being read.
[[nodiscard]] Result<EpochInfo> choose_epoch(const store::Reader& reader, const VmInfo& vm,
                                             std::optional<Epoch> wanted);

}  // namespace vmshadow::app
