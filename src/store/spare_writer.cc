#include "store/spare_writer.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <vector>

#include "io/aligned_buffer.h"
#include "store/tier_choice.h"

namespace vmshadow::store {
namespace {

constexpr std::size_t kZerosBytes = std::size_t{1} << 20;

}  // namespace

SpareWriter::SpareWriter(SegmentCatalog& catalog, SpareSegments& spares, io::FileSystem& files,
                         std::size_t count, std::uint64_t file_bytes)
    : catalog_(catalog),
      spares_(spares),
      files_(files),
      count_(count),
      file_bytes_(io::round_up_to_block(file_bytes)) {}

Result<std::uint64_t> SpareWriter::step(std::uint64_t bytes, const IsShort& is_short) {
  if (count_ == 0) return 0;
  if (file_ == nullptr) {
    const auto tier = choose_tier(catalog_, TierKind::ssd, 0);
    if (!tier || spares_.count(*tier) >= count_ || is_short(*tier, 2 * file_bytes_)) return 0;
    VMSHADOW_TRY(begin(*tier));
  } else if (spares_.count(spare_.tier) >= count_ || is_short(spare_.tier, 0)) {
    discard();  // segments that were given up are enough, or the room is needed
    return 0;
  }
  static const std::vector<std::byte> zeros(kZerosBytes);
  std::uint64_t written = 0;
  while (written < bytes && spare_.bytes < file_bytes_) {
    const std::uint64_t wanted =
        std::min(file_bytes_ - spare_.bytes, io::round_up_to_block(bytes - written));
    const ByteSpan piece = ByteSpan(zeros).first(std::min<std::uint64_t>(kZerosBytes, wanted));
    if (auto done = file_->write({&piece, 1}, spare_.bytes, io::Durability::buffered); !done) {
      discard();
      return fail(std::move(done).error());
    }
    spare_.bytes += piece.size();
    written += piece.size();
    spares_.set_under_way(spare_.tier, spare_.bytes);
  }
  if (spare_.bytes == file_bytes_) VMSHADOW_TRY(finish());
  return written;
}

Status SpareWriter::begin(TierIndex tier) {
  spare_ = {catalog_.allocate(), tier, 0};
  VMSHADOW_ASSIGN(file_, files_.create(catalog_.directory().spare_path(tier, spare_.id)));
  return {};
}

/// Until it is synced its blocks may be no more than promised.
Status SpareWriter::finish() {
  auto synced = [&]() -> Status {
    VMSHADOW_TRY(file_->sync());
    return files_.sync_directory(catalog_.directory().segments_path(spare_.tier));
  }();
  if (!synced) {
    discard();
    return synced;
  }
  file_.reset();
  spares_.set_under_way(spare_.tier, 0);
  spares_.add_durable(spare_);
  return {};
}

bool SpareWriter::give_up(TierIndex tier) {
  if (file_ == nullptr || spare_.tier != tier) return false;
  const bool has_bytes = spare_.bytes > 0;
  discard();
  return has_bytes;
}

void SpareWriter::discard() {
  file_.reset();
  spares_.set_under_way(spare_.tier, 0);
  const auto removed = files_.remove(catalog_.directory().spare_path(spare_.tier, spare_.id));
  if (!removed) spdlog::debug("a spare file stays behind: {}", removed.error().message);
}

}  // namespace vmshadow::store
