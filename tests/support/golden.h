// One of each kind of format, with fixed contents: what the golden files, the documents' worked
// examples and the fuzzers' first corpus are made of.
#pragma once

#include <map>
#include <string>
#include <vector>

#include <vmshadow/types.h>

namespace vmshadow::test {

/// By file name ("commit.bin"). Whole records with prefix; "segment.bin" is a whole small segment.
[[nodiscard]] std::map<std::string, std::vector<std::byte>> golden_files();

/// The operator's key for the sealed ones: 00 01 02 … 1f.
[[nodiscard]] std::vector<std::byte> golden_key();

}  // namespace vmshadow::test
