// vmshadow-bench: measures vmshadow beside the tools it is compared with. Subcommands, nothing
// else: each scenario is a file of its own.
#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <vector>

#include "scenario/ingest_child.h"
#include "scenario/scenario.h"

namespace {

using namespace vmshadow;  // NOLINT(google-build-using-namespace): a main, not a header

constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;

constexpr const char* kHelp =
    R"(Measures vmshadow on this machine, each figure beside that of a baseline measured in the same run.

  vmshadow-bench store --dir /var/tmp --quick
  vmshadow-bench pause --json

Exit codes: 0 done, 1 failed (a figure that is missing is no failure: --json says why it is null),
2 usage.)";

struct Command {
  std::unique_ptr<bench::Scenario> scenario;
  CLI::App* app{};
};

struct CommonOptions {
  bool json = false;
  bool quick = false;
  bool full = false;
  [[nodiscard]] bench::RunSize size() const {
    if (quick) return bench::RunSize::quick;
    return full ? bench::RunSize::full : bench::RunSize::normal;
  }
};

int run_scenario(bench::Scenario& scenario, const CommonOptions& options) {
  Result<bench::Report> report = [&] {
    const bench::Progress progress;
    return scenario.run(options.size(), progress);
  }();
  if (!report) {
    fmt::print(stderr, "vmshadow-bench {}: {}\n", scenario.name(), report.error().message);
    return kExitFailed;
  }
  fmt::print("{}\n", options.json ? report->json() : report->table());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CommonOptions options;
  std::vector<Command> commands;
  commands.push_back({bench::make_store_scenario(), nullptr});
  commands.push_back({bench::make_pause_scenario(), nullptr});

  CLI::App cli{kHelp, "vmshadow-bench"};
  cli.set_version_flag("--version", VMSHADOW_VERSION);
  cli.require_subcommand(1);
  for (Command& command : commands) {
    command.app = cli.add_subcommand(command.scenario->name(), command.scenario->help());
    command.app->add_flag("--json", options.json, "one JSON object instead of a table");
    auto* quick = command.app->add_flag("--quick", options.quick, "tiny, in seconds");
    command.app->add_flag("--full", options.full, "the sizes of the published figures")
        ->excludes(quick);
    command.scenario->add_options(*command.app);
  }
  bench::IngestChildOptions child;
  CLI::App* child_command = bench::add_ingest_child(cli, child);
  try {
    cli.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return cli.exit(error) == 0 ? 0 : kExitUsage;
  }
  spdlog::set_default_logger(spdlog::stderr_logger_mt("vmshadow-bench"));
  spdlog::set_level(spdlog::level::err);
  if (child_command->parsed()) return bench::run_ingest_child(child) ? 0 : kExitFailed;
  for (const Command& command : commands) {
    if (command.app->parsed()) return run_scenario(*command.scenario, options);
  }
  return kExitUsage;
}
