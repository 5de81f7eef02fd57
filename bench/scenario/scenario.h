// A subcommand of vmshadow-bench: its options, and a run that ends in a report.
//
// One file a scenario, with a make_…_scenario() here and a line in vmshadow_bench_main.cc.
#pragma once

#include <memory>
#include <string>

#include <vmshadow/result.h>

#include "scenario/report.h"

namespace CLI {
class App;
}

namespace vmshadow::bench {

enum class RunSize {
  quick,   ///< seconds, tiny: shows that it runs, the figures mean little
  normal,  ///< some minutes
  full,    ///< the sizes that the published figures are measured with
};

class Scenario {
 public:
  virtual ~Scenario() = default;
  [[nodiscard]] virtual std::string name() const = 0;
  [[nodiscard]] virtual std::string help() const = 0;
  virtual void add_options(CLI::App& command) = 0;
  [[nodiscard]] virtual Result<Report> run(RunSize size, const Progress& progress) = 0;
};

[[nodiscard]] std::unique_ptr<Scenario> make_store_scenario();
/// It starts the tests' guests: only in a build that has the tests.
[[nodiscard]] std::unique_ptr<Scenario> make_pause_scenario();

}  // namespace vmshadow::bench
