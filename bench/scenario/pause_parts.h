// The parts of `vmshadow-bench pause`: each puts its figures into the report, or why there are
// none. The status is an error only for what went wrong on the way: a machine that lacks something
// (KVM, QEMU) is no failure.
#pragma once

#include <chrono>
#include <initializer_list>
#include <string>
#include <vector>

#include <vmshadow/result.h>

#include "scenario/report.h"
#include "scenario/scenario.h"
#include "support/qemu_guest.h"

namespace vmshadow::bench {

/// One guest at one rate of writes.
struct PauseCase {
  std::string accel;  ///< "kvm", "tcg"
  std::string guest;  ///< "bare", "linux"
  unsigned pages{};   ///< that the witness writes per epoch
  std::chrono::milliseconds interval{};
  [[nodiscard]] std::string kind() const { return guest + "-" + accel; }
  [[nodiscard]] std::string title() const;
};
/// What is measured unless fewer are asked for: every kind of guest at every rate.
[[nodiscard]] std::vector<PauseCase> all_pause_cases();

/// A bare guest that writes `pages` pages of its own in each `interval`, `ticks` times a part of
/// them, and prints a line after `report` of these.
[[nodiscard]] test::GuestConfig bare_pause_guest(const std::string& accel, unsigned pages,
                                                 std::chrono::milliseconds interval,
                                                 unsigned ticks = 10, unsigned report = 10);

struct PauseSizes {
  unsigned rounds{};
  unsigned epochs{};  ///< counted, of each contender in each round
  unsigned work_rounds{};
  /// Of each side in each round. Not whole seconds: the last epoch is over, on either side.
  std::chrono::milliseconds work_span{};
  std::chrono::seconds idle_span{};
  unsigned output_epochs{};
};
[[nodiscard]] PauseSizes pause_sizes(RunSize size);

/// Appends the case to the report's list "cases": ratios, pauses and phases.
[[nodiscard]] Status measure_pause_case(const PauseCase& which, const PauseSizes& sizes,
                                        const Progress& progress, Report& report);
/// guest_work_ratio.
[[nodiscard]] Status measure_guest_work(const PauseSizes& sizes, const Progress& progress,
                                        Report& report);
/// idle_cpu_percent.
[[nodiscard]] Status measure_idle_cpu(const PauseSizes& sizes, const Progress& progress,
                                      Report& report);
/// sidecar_memory_mib and its bound.
[[nodiscard]] Status measure_sidecar_memory(const PauseSizes& sizes, const Progress& progress,
                                            Report& report);
/// The pauses that the monitor reports beside the silences in what the guest prints.
[[nodiscard]] Status measure_output_gaps(const PauseSizes& sizes, const Progress& progress,
                                         Report& report);

/// Puts `error` into the report as why these figures are missing. Success if the machine lacks
/// what they need, else the error.
[[nodiscard]] Status missing_figures(Report& report, std::initializer_list<const char*> keys,
                                     const Error& error);

}  // namespace vmshadow::bench
