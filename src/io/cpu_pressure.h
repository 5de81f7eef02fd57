// Pressure-stall information: how much of the time something wanted a processor of this host and
// had none (the kernel's Documentation/accounting/psi.rst).
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace vmshadow::io {

/// `some avg10` of a pressure file's text: per cent of the last ten seconds, 0 … 100. nullopt if it
/// says nothing of the kind.
[[nodiscard]] std::optional<double> parse_some_avg10(std::string_view text);
/// Of /proc/pressure/cpu; nullopt on a kernel without it (CONFIG_PSI, boot option psi=1).
[[nodiscard]] std::optional<double> cpu_pressure(const std::string& path = "/proc/pressure/cpu");

}  // namespace vmshadow::io
