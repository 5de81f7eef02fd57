// What `vmshadow-bench pause` is in a build without the tests, whose guests it starts.
#include "scenario/scenario.h"

namespace vmshadow::bench {
namespace {

class AbsentPauseScenario final : public Scenario {
 public:
  [[nodiscard]] std::string name() const override { return "pause"; }
  [[nodiscard]] std::string help() const override { return "not in this build (-Dtests=true)"; }
  void add_options(CLI::App&) override {}
  [[nodiscard]] Result<Report> run(RunSize, const Progress&) override {
    return fail(Errc::unsupported,
                "this build has no guests to measure with: set it up with -Dtests=true");
  }
};

}  // namespace

std::unique_ptr<Scenario> make_pause_scenario() { return std::make_unique<AbsentPauseScenario>(); }

}  // namespace vmshadow::bench
