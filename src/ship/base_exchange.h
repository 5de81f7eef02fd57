// How a new session gets to go on from the newest committed epoch instead of shipping all RAM
// again.
//
//   sidecar ── base_query (a secret) ──────────────────────────► store
//           ◄─ machine, base_hashes …, base_end ─────────────────
//
// The store reads that epoch's image back and hashes each page with the sidecar's secret, so that
// what the sidecar compares its full pass with is what a restore would really get, and no guest can
// make two pages that look the same. It costs the link 24 bytes a data page.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include <vmshadow/result.h>
#include <vmshadow/shadow_reader.h>
#include <vmshadow/types.h>

#include "base/hash.h"
#include "delta/epoch_encoder.h"
#include "ship/record_channel.h"

namespace vmshadow::ship {

/// The store's end: sends all that is asked for of `image`. The records carry `vm`, and the image's
/// epoch and generation. False if the image cannot be read to its end, which the peer is told; an
/// error if the link fails.
[[nodiscard]] Result<bool> send_base(RecordChannel& channel, const VmId& vm,
                                     const EpochImage& image, const PageHasher& hasher,
                                     std::chrono::milliseconds silence);
/// Says that there is nothing to build on, and why.
[[nodiscard]] Status send_no_base(RecordChannel& channel, const VmId& vm, const std::string& why,
                                  std::chrono::milliseconds silence);

struct BaseProgress {
  std::uint64_t pages{};  ///< received
  std::uint64_t of{};     ///< at most
};
struct BaseRequest {
  VmId vm;
  Generation granted;                   ///< the session's
  std::chrono::milliseconds silence{};  ///< without a byte from the store: the link is dead
  std::uint64_t ram_bytes_max{};        ///< what the VM may have at most: bounds what is allocated
  std::function<void(const BaseProgress&)> on_progress;  ///< may be empty; about once a second
  std::function<bool()> cancelled;                       ///< may be empty; asked all the time
};
/// What the store has, or why a full epoch is needed.
struct BaseAnswer {
  std::optional<delta::KnownEpoch> known;
  std::string why_not;
};
/// The sidecar's end: asks and takes the answer. Nothing else may be under way on `channel`.
/// Errc::cancelled; Errc::protocol if the answer contradicts itself; errors of the link.
[[nodiscard]] Result<BaseAnswer> fetch_base(RecordChannel& channel, const BaseRequest& request,
                                            const PageHasher& hasher);

}  // namespace vmshadow::ship
