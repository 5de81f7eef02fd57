// main() for a fuzz target outside libFuzzer: gives it every file of a corpus directory once, in
// the order of their names. What a fuzzer once found therefore stays found in every build and
// sanitizer. A missing or empty corpus is a failure: it would test nothing.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

namespace fs = std::filesystem;

std::vector<fs::path> corpus_files(const fs::path& directory) {
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    if (entry->is_regular_file(error)) files.push_back(entry->path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::optional<std::vector<std::uint8_t>> read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  return std::vector<std::uint8_t>(std::istreambuf_iterator<char>(file), {});
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s CORPUS-DIRECTORY\n", argv[0]);
    return 2;
  }
  const std::vector<fs::path> files = corpus_files(argv[1]);
  if (files.empty()) {
    std::fprintf(stderr, "corpus %s is missing or empty: add at least one seed\n", argv[1]);
    return 1;
  }
  for (const fs::path& path : files) {
    const auto input = read_file(path);
    if (!input) {
      std::fprintf(stderr, "cannot read %s: check its permissions\n", path.c_str());
      return 1;
    }
    // Named before it runs, so that a crash says which file it was.
    std::printf("%s: %zu bytes\n", path.filename().c_str(), input->size());
    std::fflush(stdout);
    LLVMFuzzerTestOneInput(input->data(), input->size());
  }
  std::printf("replayed %zu files\n", files.size());
  return 0;
}
