#include "store/archive_writer.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "base/assert.h"
#include "io/aligned_buffer.h"
#include "store/tier_choice.h"

namespace vmshadow::store {

using format::RecordType;

namespace {

/// What is written at once: large enough for a disk that turns, small enough for a commit between.
constexpr std::size_t kFlushBytes = std::size_t{1} << 20;
/// What an archive holds besides what is appended: its head, names, skeleton and seal, about.
constexpr std::uint64_t kOwnBytes = std::uint64_t{256} << 10;

}  // namespace

ArchiveWriter::ArchiveWriter(SegmentCatalog& catalog, io::FileSystem& files, const Clock& clock,
                             Plan plan)
    : catalog_(catalog), files_(files), clock_(clock), plan_(std::move(plan)) {}
ArchiveWriter::~ArchiveWriter() = default;

Result<RecordPlace> ArchiveWriter::append(ByteSpan record, std::size_t pages) {
  const std::size_t padded = record.size() + format::alignment_gap(record.size());
  if (file_ != nullptr && flushed_ + buffer_.size() + padded > plan_.segment_bytes) {
    VMSHADOW_TRY(end_segment());
  }
  if (file_ == nullptr) VMSHADOW_TRY(begin_segment());
  const std::uint64_t offset = flushed_ + buffer_.size();
  format::RecordPrefixBytes prefix;
  std::memcpy(&prefix, record.data(), sizeof prefix);
  const auto type = static_cast<RecordType>(prefix.type.get());
  skeleton_.add(offset, record);
  format::append_bytes(buffer_, record);
  buffer_.resize(buffer_.size() + padded - record.size());
  made_.back().record_bytes += padded;
  if (buffer_.size() >= kFlushBytes) VMSHADOW_TRY(flush(false));
  return RecordPlace::at({made_.back().id, SegmentOffset{offset}}, prefix.body_bytes.get(),
                         Epoch{prefix.epoch.get()}, pages, format::is_sealed(type));
}

Result<RecordPlace> ArchiveWriter::append(const format::RecordHead& head, ByteSpan body,
                                          std::size_t pages) {
  std::vector<std::byte> record;
  format::append_record(record, head, body);
  return append(record, pages);
}

Status ArchiveWriter::begin_segment() {
  const std::uint64_t left = plan_.expected_bytes - std::min(plan_.expected_bytes, written_bytes_);
  const std::uint64_t bytes =
      io::round_up_to_block(std::min(plan_.segment_bytes, left + plan_.states.size() + kOwnBytes));
  VMSHADOW_ASSIGN(const TierIndex tier, choose_tier(catalog_, plan_.kind, bytes));
  const StoreDirectory& directory = catalog_.directory();
  const SegmentId id = catalog_.allocate();
  VMSHADOW_ASSIGN(file_, files_.create(directory.spare_path(tier, id)));
  made_.push_back({id, tier, 0, 0});
  catalog_.add(id, {format::SegmentKind::archive, tier, 0, false, false, 0});
  if (const auto reserved = file_->preallocate(bytes); !reserved) {
    spdlog::debug("an archive is written without space reserved: {}", reserved.error().message);
  }
  flushed_ = 0;
  skeleton_ = {};
  buffer_ = format::encode_segment_head(
      {directory.id(), id, clock_.wall(), format::SegmentKind::archive});
  std::vector<std::byte> body;
  format::append_body(body, format::Replace{plan_.sources, {}, {}});
  std::vector<std::byte> record;
  format::append_record(record, {RecordType::replace, 0, {}, {}, {}}, body);
  record.resize(record.size() + format::alignment_gap(record.size()));
  add_aligned(record);
  add_aligned(plan_.states);
  return {};
}

void ArchiveWriter::add_aligned(ByteSpan records) {
  while (!records.empty()) {
    format::RecordPrefixBytes prefix;
    std::memcpy(&prefix, records.data(), sizeof prefix);
    const std::size_t bytes = format::kRecordPrefixBytes + prefix.body_bytes.get();
    const std::size_t padded = bytes + format::alignment_gap(bytes);
    skeleton_.add(buffer_.size(), records.first(bytes));
    format::append_bytes(buffer_, records.first(padded));
    records = records.subspan(padded);
  }
}

Status ArchiveWriter::flush(bool all) {
  const std::size_t bytes =
      all ? buffer_.size() : buffer_.size() / io::kDirectBlockBytes * io::kDirectBlockBytes;
  const ByteSpan piece = ByteSpan(buffer_).first(bytes);
  VMSHADOW_TRY(file_->write({&piece, 1}, flushed_,
                            all ? io::Durability::durable : io::Durability::buffered));
  buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<std::ptrdiff_t>(bytes));
  flushed_ += bytes;
  written_bytes_ += bytes;
  catalog_.set_bytes(made_.back().id, flushed_, false);
  return {};
}

Status ArchiveWriter::end_segment() {
  const std::uint64_t end = flushed_ + buffer_.size();
  format::append_bytes(buffer_,
                       format::encode_segment_end(made_.back().id, end, skeleton_, {}, {}));
  VMSHADOW_TRY(flush(true));
  VMSHADOW_TRY(file_->truncate(flushed_));  // gives back what was reserved
  made_.back().bytes = flushed_;
  catalog_.set_bytes(made_.back().id, flushed_, true);
  file_.reset();
  const StoreDirectory& directory = catalog_.directory();
  const Made& made = made_.back();
  return files_.rename(directory.spare_path(made.tier, made.id),
                       directory.segment_path(made.tier, made.id));
}

Status ArchiveWriter::finish() {
  if (file_ != nullptr) VMSHADOW_TRY(end_segment());
  for (const Made& made : made_) {
    VMSHADOW_TRY(files_.sync_directory(catalog_.directory().segments_path(made.tier)));
  }
  return {};
}

void ArchiveWriter::discard() {
  file_.reset();
  for (const Made& made : made_) {
    const StoreDirectory& directory = catalog_.directory();
    for (const std::string& path :
         {directory.spare_path(made.tier, made.id), directory.segment_path(made.tier, made.id)}) {
      const auto removed = files_.remove(path);
      if (removed || removed.error().code == Errc::not_found) continue;
      spdlog::warn("an archive that is not needed stays behind until the next start: {}",
                   removed.error().message);
    }
    catalog_.remove(made.id);
    // One that came back after a crash might be taken for all that is left of its sources.
    if (const auto synced = files_.sync_directory(catalog_.directory().segments_path(made.tier));
        !synced) {
      spdlog::warn("an unfinished archive may stay behind: {}", synced.error().message);
    }
  }
  made_.clear();
}

}  // namespace vmshadow::store
