// Reads QEMU's socket, parses what comes, hands the pages to the sink: the only place between a
// stopped guest and its resumption that costs time, so it never waits for anybody but QEMU, unless
// the caller knows that the guest runs.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include <vmshadow/page_sink.h>
#include <vmshadow/result.h>

#include "base/unique_fd.h"
#include "capture/chunk_pool.h"
#include "capture/migration_stream.h"
#include "io/socket.h"

namespace vmshadow::capture {

class EpochDrain {
 public:
  static constexpr std::size_t kChunkBytes = std::size_t{1} << 20;
  static constexpr std::size_t kChunksKept = 48;
  static constexpr std::size_t kChunksPrepared = 16;

  /// Pages go to `sink`; both outlive the drain. `fd` is non-blocking.
  EpochDrain(UniqueFd fd, PageSink& sink);

  /// Reads on until the stream's next event. Each wait for QEMU is bounded by `stall`:
  /// Errc::timed_out names how long and where; Errc::closed if QEMU closed the stream. If
  /// `guest_runs` is given, it is asked before each read: while it says yes the drain waits for the
  /// sink to have room; an error of its ends the call.
  [[nodiscard]] Result<MigrationStream::Event> next(
      std::chrono::milliseconds stall, const std::function<Result<bool>()>& guest_runs = {});
  /// Takes what has already arrived, without waiting: for the device tail, whose end only QEMU's
  /// status tells.
  [[nodiscard]] Status take_arrived();
  /// Reads the device tail of a stream that ends with it, each wait bounded by `stall`.
  [[nodiscard]] Status read_tail(std::chrono::milliseconds stall);
  /// Whether QEMU closes the stream, all of which was read, within `patience`: it is then done with
  /// the migration.
  [[nodiscard]] bool wait_for_close(std::chrono::milliseconds patience);
  /// Sends COLO messages to QEMU, one after the other.
  [[nodiscard]] Status send(std::initializer_list<ColoMessage> messages);

  /// Between two epochs, while the guest runs: gives back memory that late epochs did not need.
  void trim() { pool_.trim(); }

  /// Closes the socket: QEMU sees its peer gone.
  void close() { fd_.reset(); }

  [[nodiscard]] MigrationStream& stream() { return stream_; }
  [[nodiscard]] std::uint64_t bytes_read() const { return bytes_read_; }

 private:
  /// Parses what is buffered; need_more if there is no event in it.
  [[nodiscard]] Result<MigrationStream::Event> parse_buffered();
  [[nodiscard]] Status read_more(std::chrono::milliseconds stall);
  void make_room();

  UniqueFd fd_;
  PageSink& sink_;
  ChunkPool pool_;
  MigrationStream stream_;
  std::shared_ptr<std::byte[]> chunk_;
  std::size_t parsed_ = 0;  // [parsed_, filled_) is read but not parsed
  std::size_t filled_ = 0;
  std::vector<PageRef> pages_;
  std::uint64_t bytes_read_ = 0;
};

}  // namespace vmshadow::capture
