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

/// What a command has read, by the kind of tier it lies on; the vmshadow-store that has the
/// directory open, if one has, is told so: what is read again and again moves to its fast tier.
[[nodiscard]] store::Reader::Reads settle_reads(const ReplayScope& scope,
                                                const store::Reader& reader);
/// {"ssd":…,"hdd":…}: bytes.
[[nodiscard]] ReportJson reads_json(const store::Reader::Reads& reads);
/// "12.0 MB from ssd, 3.1 MB from hdd"
[[nodiscard]] std::string reads_text(const store::Reader::Reads& reads);

}  // namespace vmshadow::app
