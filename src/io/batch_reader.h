// Many reads at random places at once: what a restore asks for by the thousand, and a lazily paging
// guest one by one.
//
// io_uring with a bounded depth or, where the kernel refuses it, pread one after the other. One
// thread at a time uses a BatchReader; each thread that reads has its own (a ring costs a few
// system calls to make and some pages).
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "io/append_file.h"
#include "io/uring.h"

namespace vmshadow::io {

/// One read. If `fd` was opened by open_for_direct_reading(), offset, length and address are
/// multiples of kDirectBlockBytes (io/aligned_buffer.h).
struct ReadRequest {
  int fd{};
  std::uint64_t offset{};
  MutableByteSpan into;
  // What became of it:
  std::size_t bytes_read{};  ///< fewer than asked for only at the file's end or with an error
  int error{};               ///< an errno, or 0
  [[nodiscard]] bool whole() const { return error == 0 && bytes_read == into.size(); }
};

class BatchReader {
 public:
  [[nodiscard]] static Result<std::unique_ptr<BatchReader>> create(
      FileBackend backend = FileBackend::automatic);

  /// Reads all of `requests`; returns when the last is done. An error is its request's alone.
  void read(std::span<ReadRequest> requests);
  /// One read, without the detour through the ring.
  static void read_one(ReadRequest& request);

 private:
  explicit BatchReader(std::unique_ptr<Uring> uring) : uring_(std::move(uring)) {}
  std::unique_ptr<Uring> uring_;  ///< null: system calls
};

}  // namespace vmshadow::io
