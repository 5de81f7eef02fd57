#include "scenario/ingest_child.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <charconv>
#include <cstdio>

#include "scenario/store_adapter.h"
#include "support/made_epochs.h"

namespace vmshadow::bench {
namespace {

constexpr const char* kCommand = "ingest-until-killed";
constexpr std::size_t kChildPoolGroups = 256;
constexpr const char* kSelf = "/proc/self/exe";

Status ingest_for_ever(const IngestChildOptions& options) {
  StoreSetup setup;
  setup.directory = options.directory;
  VMSHADOW_ASSIGN(const auto store, open_store(setup));
  VMSHADOW_ASSIGN(const auto session, store->open_session(options.vm, "bench"));
  const GroupPool pool(GroupPool::Fill::small, kChildPoolGroups, 9);
  const MachineDescription machine = machine_with_pages(options.vm_pages);
  std::mt19937_64 random(session->next_epoch().value);
  for (bool first = true;; first = false) {
    const Epoch epoch = session->next_epoch();
    // A new session is a new generation, which starts with a full epoch.
    const EpochPlan plan = first
                               ? plan_all(options.vm_pages, pool, random)
                               : plan_uniform(options.epoch_pages, options.vm_pages, pool, random);
    VMSHADOW_TRY(ship(*session, make_epoch({vm_id(options.vm), session->generation(), epoch},
                                           first ? &machine : nullptr, plan, pool)));
    fmt::print("{}\n", epoch.value);
    std::fflush(stdout);
  }
}

}  // namespace

CLI::App* add_ingest_child(CLI::App& cli, IngestChildOptions& options) {
  CLI::App* command = cli.add_subcommand(kCommand, "of `store`: ships epochs until it is killed");
  command->group("");  // hidden
  command->add_option("--dir", options.directory)->required();
  command->add_option("--vm", options.vm)->required();
  command->add_option("--vm-pages", options.vm_pages)->required();
  command->add_option("--epoch-pages", options.epoch_pages)->required();
  return command;
}

bool run_ingest_child(const IngestChildOptions& options) {
  const Status status = ingest_for_ever(options);
  if (!status) fmt::print(stderr, "vmshadow-bench {}: {}\n", kCommand, status.error().message);
  return status.has_value();
}

Result<Epoch> ingest_in_child_and_kill(const IngestChildOptions& options, std::size_t commits) {
  VMSHADOW_ASSIGN(ChildProgram child,
                  ChildProgram::start({kSelf, kCommand, "--dir", options.directory, "--vm",
                                       options.vm, "--vm-pages", std::to_string(options.vm_pages),
                                       "--epoch-pages", std::to_string(options.epoch_pages)}));
  Epoch last;
  for (std::size_t i = 0; i < commits; ++i) {
    VMSHADOW_ASSIGN(const std::string line, child.read_line());
    const auto parsed = std::from_chars(line.data(), line.data() + line.size(), last.value);
    if (parsed.ec != std::errc{}) return fail(Errc::protocol, "the ingesting child said: " + line);
  }
  child.kill();
  return last;
}

}  // namespace vmshadow::bench
