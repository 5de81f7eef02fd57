// A directory that disappears with its owner. Its path is short: unix sockets must fit into it.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>

#include "base/assert.h"

namespace vmshadow::test {

class TempDir {
 public:
  enum class Where {
    disk,
    memory,  ///< if there is a file system in memory: for many small files on a disk that is made
             ///< up
  };
  explicit TempDir(Where where = Where::disk) : path_("/tmp/vmshadow-XXXXXX") {
    if (const char* base = std::getenv("TMPDIR");
        base != nullptr && std::string(base).size() < 40) {
      path_ = std::string(base) + "/vmshadow-XXXXXX";
    }
    if (where == Where::memory && ::access("/dev/shm", W_OK) == 0) {
      path_ = "/dev/shm/vmshadow-XXXXXX";
    }
    VMSHADOW_ASSERT(::mkdtemp(path_.data()) != nullptr);
  }
  TempDir(TempDir&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  TempDir& operator=(TempDir&&) = delete;
  ~TempDir() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace vmshadow::test
