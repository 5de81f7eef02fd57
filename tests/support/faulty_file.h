// A disk that fails: a FileSystem on real files that fails at a chosen operation, runs full, and
// crashes the way disks do, where what was not synced may be there, missing or torn.
//
// Operations are counted from 0: create, open, write, sync, truncate, rename, remove and directory
// sync are one each (a durable write is two: the write and the sync). After crash_at() has struck,
// everything fails; crash() then turns the files into one of the states that a power cut could have
// left, chosen by a seed. One thread at a time uses the files; set it up before and look after.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "io/append_file.h"

namespace vmshadow::test {

class FaultyDisk {
 public:
  /// Operation `n` fails with this errno; of a write, `bytes_kept` still reach the file.
  void fail_at(std::uint64_t n, int errno_value, std::size_t bytes_kept = 0);
  /// Operation `n` and all later ones fail with EIO: the machine is gone.
  void crash_at(std::uint64_t n) { crash_at_ = n; }
  /// Files may hold this much together; a write beyond it keeps what fits and fails with ENOSPC.
  void set_capacity(std::uint64_t bytes) { capacity_ = bytes; }
  void clear_faults();
  [[nodiscard]] std::uint64_t operations() const { return operations_; }
  [[nodiscard]] std::uint64_t syncs() const { return syncs_; }
  [[nodiscard]] std::uint64_t used_bytes() const;

  /// Loses what a power cut may lose. Nothing may hold the files open.
  void crash(std::uint64_t seed);

  /// A FileSystem on this disk, which outlives it.
  [[nodiscard]] std::unique_ptr<io::FileSystem> file_system();

 private:
  friend class FaultyFile;
  friend class FaultyFileSystem;

  struct Change {
    std::uint64_t offset{};
    std::vector<std::byte> bytes;
  };
  struct File {
    std::vector<std::byte> durable;  ///< contents as of the last sync
    std::vector<std::byte> now;
    std::vector<Change> unsynced;
  };
  /// A name whose entry in its directory is not durable yet: what it was before.
  using OldEntry = std::optional<File>;

  /// Counts an operation; the errno it must fail with, or 0.
  int next_operation(std::size_t* bytes_kept = nullptr);
  void remember_entry(const std::string& path);
  File& load(const std::string& path);
  static void store(const std::string& path, const std::vector<std::byte>& bytes);
  static void apply(std::vector<std::byte>& contents, const Change& change, std::size_t first,
                    std::size_t count);

  std::map<std::string, File> files_;
  std::map<std::string, OldEntry> pending_entries_;
  std::uint64_t operations_ = 0;
  std::uint64_t syncs_ = 0;
  std::optional<std::uint64_t> crash_at_;
  std::optional<std::uint64_t> capacity_;
  struct Fault {
    int errno_value;
    std::size_t bytes_kept;
  };
  std::map<std::uint64_t, Fault> faults_;
};

}  // namespace vmshadow::test
