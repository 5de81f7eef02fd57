// What shadow-replay says, as JSON: the shapes scripts may rely on (golden files in
// tests/unit/golden). Keys are only ever added. Pure.
#pragma once

#include <nlohmann/json.hpp>

#include <optional>
#include <string>

#include <vmshadow/clock.h>
#include <vmshadow/shadow_reader.h>

#include "replay/epoch_diff.h"
#include "replay/exporter.h"
#include "replay/machine_record.h"
#include "store/damage.h"

namespace vmshadow::app {

using ReportJson = nlohmann::ordered_json;

/// "2026-11-22T14:00:03.250Z"
[[nodiscard]] std::string utc_text(WallTime time);
[[nodiscard]] double seconds_between(WallTime earlier, WallTime later);

[[nodiscard]] ReportJson epoch_json(const EpochInfo& info);
[[nodiscard]] ReportJson vm_json(const VmInfo& vm, WallTime now);
/// One epoch in detail. `record` is `machine.json` parsed; nullopt if it cannot be.
[[nodiscard]] ReportJson show_json(const VmInfo& vm, const EpochInfo& info,
                                   const MachineDescription& machine,
                                   const std::optional<replay::MachineRecord>& record,
                                   WallTime now);
[[nodiscard]] ReportJson diff_json(const std::string& vm, const EpochInfo& a, const EpochInfo& b,
                                   const replay::EpochDiff& diff);
[[nodiscard]] ReportJson export_json(const std::string& vm, const EpochInfo& info,
                                     const std::string& format, const replay::ExportReport& report);
[[nodiscard]] ReportJson damage_json(const store::Damage& damage);

}  // namespace vmshadow::app
