#include "app/key_options.h"

#include "crypt/key_command.h"
#include "crypt/key_directory.h"

namespace vmshadow::app {

void add_key_options(CLI::App& cli, KeyOptions& options) {
  CLI::Option* const directory =
      cli.add_option("--keys", options.directory,
                     "a directory with a file VM.key for each VM: 32 bytes, or 64 hex digits")
          ->check(CLI::ExistingDirectory);
  cli.add_option("--key-command", options.command,
                 "a command that prints a VM's key as such a file has it; it gets the VM's name as "
                 "its last argument")
      ->excludes(directory);
}

std::shared_ptr<const crypt::KeySource> key_source(const KeyOptions& options) {
  if (!options.directory.empty()) return std::make_shared<crypt::KeyDirectory>(options.directory);
  if (!options.command.empty()) return std::make_shared<crypt::KeyCommand>(options.command);
  return nullptr;
}

}  // namespace vmshadow::app
