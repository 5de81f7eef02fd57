// A disk that fails: a FileSystem on real files that fails at a chosen operation, tears the write
// under way, runs full, flips bits, is slow, and crashes the way disks do, where what was not
// synced may be there, missing or torn.
//
// Operations are counted from 0: create, open, write, sync, truncate, preallocate, rename, remove
// and directory sync are one each (a durable write is two: the write and the sync). After
// crash_at() has struck, everything fails; crash() then turns the files into one of the states that
// a power cut could have left, chosen by a seed. Several threads may use file systems of one disk,
// each its own (as io/append_file.h asks); set it up before and look after.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "io/append_file.h"

namespace vmshadow::test {

class FaultyDisk {
 public:
  enum class OperationKind {
    create,
    open,
    write,
    sync,
    truncate,
    preallocate,
    rename,
    remove,
    sync_directory,
  };
  struct Operation {
    std::uint64_t number{};
    OperationKind kind{};
    std::string path;
    std::uint64_t bytes{};  ///< of a write
  };

  /// Operation `n` fails with this errno; of a write, `bytes_kept` still reach the file.
  void fail_at(std::uint64_t n, int errno_value, std::size_t bytes_kept = 0);
  /// Operation `n` fails with this errno; of a write, each sector reaches the file or not, as the
  /// seed has it.
  void tear_at(std::uint64_t n, int errno_value, std::uint64_t seed);
  /// The disk says that it has written `count` bytes of a file from `offset` and holds others: a
  /// bit of each is flipped whenever they have been written, until heal().
  void corrupt(const std::string& path, std::uint64_t offset, std::uint64_t count = 1,
               std::byte flip = std::byte{0x10});
  void heal();
  /// Called before every operation, by the thread that does it and without a lock: a slow disk is
  /// one whose callback takes its time, or waits for the test.
  void on_operation(std::function<void(const Operation&)> callback);
  /// Operation `n` and all later ones fail with EIO: the machine is gone.
  void crash_at(std::uint64_t n);
  /// Files may hold this much together; a write beyond it keeps what fits and fails with ENOSPC.
  void set_capacity(std::uint64_t bytes);
  void clear_faults();
  [[nodiscard]] std::uint64_t operations() const;
  [[nodiscard]] std::uint64_t syncs() const;
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

  struct Fault {
    int errno_value{};
    std::size_t bytes_kept{};
    std::optional<std::uint64_t> tear_seed;
  };
  struct Corruption {
    std::uint64_t offset{};
    std::uint64_t count{};
    std::byte flip{};
  };

  /// Counts an operation after the callback has let it pass; what it must fail with, or nothing.
  /// The caller holds the lock it returns while it works on the files.
  struct Turn {
    std::unique_lock<std::recursive_mutex> lock;
    std::optional<Fault> fault;
    [[nodiscard]] int error() const { return fault ? fault->errno_value : 0; }
  };
  [[nodiscard]] Turn next_operation(OperationKind kind, const std::string& path,
                                    std::uint64_t bytes = 0);
  void remember_entry(const std::string& path);
  File& load(const std::string& path);
  [[nodiscard]] std::uint64_t used_bytes_locked() const;
  /// Brings a change, or a whole file, to the real disk.
  void put(const std::string& path, const Change& change);
  void store(const std::string& path, const std::vector<std::byte>& bytes);
  void flip_bits(const std::string& path, std::uint64_t offset, std::uint64_t count);
  static void apply(std::vector<std::byte>& contents, const Change& change, std::size_t first,
                    std::size_t count);

  mutable std::recursive_mutex mutex_;
  std::map<std::string, File> files_;
  std::map<std::string, OldEntry> pending_entries_;
  std::uint64_t operations_ = 0;
  std::uint64_t syncs_ = 0;
  std::optional<std::uint64_t> crash_at_;
  std::optional<std::uint64_t> capacity_;
  std::map<std::uint64_t, Fault> faults_;
  std::map<std::string, std::vector<Corruption>> corruptions_;
  std::function<void(const Operation&)> callback_;
};

}  // namespace vmshadow::test
