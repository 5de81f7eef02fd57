// The program in its hidden mode: it ships epochs to a store of its own until it is killed, and
// prints each that was acknowledged. What it leaves behind is what a crash leaves.
#pragma once

#include <cstdint>
#include <string>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "support/command.h"

namespace CLI {
class App;
}

namespace vmshadow::bench {

struct IngestChildOptions {
  std::string directory;
  std::string vm;
  std::uint64_t vm_pages{};
  std::uint64_t epoch_pages{};
};

/// The hidden subcommand, for main().
CLI::App* add_ingest_child(CLI::App& cli, IngestChildOptions& options);
/// Until it is killed; false (after a message on stderr) if it fails.
[[nodiscard]] bool run_ingest_child(const IngestChildOptions& options);

/// Starts one, lets it have `commits` epochs acknowledged, and kills it in the midst of the next.
/// The last epoch acknowledged.
[[nodiscard]] Result<Epoch> ingest_in_child_and_kill(const IngestChildOptions& options,
                                                     std::size_t commits);

}  // namespace vmshadow::bench
