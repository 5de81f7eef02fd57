// The options that say where VMs' keys are, the same for every program that reads or writes a
// store.
#pragma once

#include <CLI/CLI.hpp>

#include <memory>
#include <string>

#include "crypt/key_source.h"

namespace vmshadow::app {

struct KeyOptions {
  std::string directory;
  std::string command;
};

/// --keys and --key-command, which exclude each other.
void add_key_options(CLI::App& cli, KeyOptions& options);
/// Null if neither was given.
[[nodiscard]] std::shared_ptr<const crypt::KeySource> key_source(const KeyOptions& options);

}  // namespace vmshadow::app
