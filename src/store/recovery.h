// Reads a whole journal and says what it holds, what is damaged, and where its writer stopped.
//
// Every record's checksums, order, chain and counts are checked. A bad place in the last segment,
// at or behind everything a later record says was durable, is a torn tail: the journal ends there.
// Any other bad place is damage: it is reported, and costs the epochs that need it, no others.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "format/journal.h"
#include "store/damage.h"
#include "store/directory.h"
#include "store/index_builder.h"
#include "store/journal_index.h"

namespace vmshadow::store {

struct ScanProgress {
  std::uint64_t bytes_done{};
  std::uint64_t bytes_total{};
};
struct ScanHooks {
  std::function<void(const ScanProgress&)> progress;  ///< may be empty; called per few MiB
  /// May be empty; a further check of each good record (Verifier decodes its pages).
  std::function<Status(const GoodRecord&)> check;
};

struct Recovery {
  std::shared_ptr<JournalIndex> index;
  std::vector<Damage> damage;
  std::vector<std::string> foreign;  ///< files in segments/ that are not ours
  std::optional<TornTail> torn_tail;
  std::optional<SegmentId> torn_segment;        ///< a last segment whose creation was cut short
  std::optional<format::JournalPosition> tail;  ///< where to go on; nullopt in an empty store
  std::uint64_t unknown_bytes{};                ///< of damage that may have hidden a grant
  std::uint64_t records{};
  ScanProgress progress;
};

/// Never writes. Damage is in the result; an Error means nothing can be said: Errc::version for a
/// newer store's segment, Errc::invalid_argument for another store's, Errc::permission, Errc::io.
[[nodiscard]] Result<Recovery> recover(const StoreDirectory& directory,
                                       const ScanHooks& hooks = {});

/// One segment's records into `recovery` and `builder`, from behind its head. `is_last`: a torn
/// tail is possible. Public for the fuzzer.
void recover_segment(SegmentId segment, const ByteSource& source, bool is_last,
                     const ScanHooks& hooks, Recovery& recovery, IndexBuilder& builder);

}  // namespace vmshadow::store
