#include "store/recovery.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>
#include <set>

#include "format/store_state.h"
#include "store/batch_check.h"
#include "store/batch_reader.h"
#include "store/segment_in_file.h"
#include "store/segment_skeleton.h"

namespace vmshadow::store {

namespace fs = std::filesystem;
using format::JournalPosition;
using format::RecordType;

namespace {

constexpr std::uint64_t kMissingSegmentsNamedMax = 1024;

/// How many pages a record of a skeleton holds, if it is a plain group.
std::size_t pages_of(const format::RecordPrefix& prefix, ByteSpan front) {
  if (prefix.head.type != RecordType::page_group) return 0;
  const auto group = format::decode_page_group_keys(front);
  return group ? group->page_count : 0;
}

/// Which records stand where, as a segment's skeleton says.
class SkeletonPlaces {
 public:
  SkeletonPlaces(const ByteSource& source, SegmentId segment) {
    static_cast<void>(visit_skeleton(
        source, segment, [&](std::uint64_t offset, const format::RecordPrefix& prefix, ByteSpan) {
          places_.emplace_back(offset, prefix.prefix_checksum);
        }));
  }
  /// Of those that no skeleton tells of it knows nothing.
  [[nodiscard]] bool have(const GoodRecord& record) const {
    switch (record.prefix.head.type) {
      case RecordType::mark:
      case RecordType::pad:
      case RecordType::skeleton:
      case RecordType::seal:
        return true;
      default:
        return std::binary_search(places_.begin(), places_.end(),
                                  std::pair(record.offset, record.prefix.prefix_checksum));
    }
  }

 private:
  std::vector<std::pair<std::uint64_t, std::uint64_t>> places_;  ///< offset, prefix checksum
};

/// Where a segment's records go.
struct RecordSink {
  std::function<void(JournalPosition, const format::RecordPrefix&, ByteSpan front)> add;
  std::function<void(const BadRegion&)> add_bad;
};

class Recoverer {
 public:
  Recoverer(const StoreDirectory& directory, const ScanHooks& hooks,
            const std::set<SegmentId>& excluded)
      : directory_(directory), hooks_(hooks), excluded_(excluded), builder_(*index_, assembler_) {
    recovery_.index = index_;
    recovery_.catalog = std::make_shared<SegmentCatalog>(directory);
  }

  Result<Recovery> run();
  /// Journal segments that were read but turned out to be archived already.
  [[nodiscard]] const std::set<SegmentId>& archived() const { return archived_; }

 private:
  Status open_files();
  void read_journal();
  void read_archives();
  void read_archive(SegmentInFile& segment);
  bool belongs(const SegmentInFile& archive);
  /// The sources that an archive names.
  static std::optional<std::vector<SegmentId>> sources_of(const SegmentInFile& archive);
  void note_missing();
  /// Reads a segment that is full: by its skeleton, or all of it if hooks_.check is set. False: it
  /// is not, or its end `may_be_torn` and is.
  bool read_sealed(const SegmentInFile& segment, bool may_be_torn, const RecordSink& sink);
  void scan(const SegmentInFile& segment, const SkeletonOutcome& skeleton, const RecordSink& sink);
  void add_leftover(const SegmentInFile& segment, std::string doubt = {});
  /// Whether the journal's newest segment cannot be relied on to say which files count.
  [[nodiscard]] bool is_newest_damaged() const;
  void advance(const SegmentInFile& segment);
  Damage& note(SegmentId segment, std::uint64_t offset, std::uint64_t bytes, std::string what) {
    return builder_.damage().emplace_back(
        Damage{{segment, SegmentOffset{offset}}, bytes, std::move(what), {}, {}});
  }

  const StoreDirectory& directory_;
  const ScanHooks& hooks_;
  const std::set<SegmentId>& excluded_;
  std::shared_ptr<JournalIndex> index_ = std::make_shared<JournalIndex>();
  EpochAssembler assembler_;
  IndexBuilder builder_;
  Recovery recovery_;
  std::vector<SegmentInFile> journal_;
  std::vector<SegmentInFile> archives_;
  std::set<SegmentId> archived_;
  std::set<SegmentId> stood_for_;  ///< by archives that no list names
  bool has_unknown_ = false;       ///< a segment that may have been the journal's newest
};

Status Recoverer::open_files() {
  VMSHADOW_ASSIGN(auto listing, directory_.list());
  recovery_.foreign = std::move(listing.foreign);
  recovery_.spares = std::move(listing.spares);
  recovery_.aside = std::move(listing.aside);
  // Their numbers are not used twice either: one would be renamed over the other.
  for (const auto& file : recovery_.aside) recovery_.catalog->reserve(file.id);
  for (const StoreDirectory::SegmentFile& file : listing.segments) {
    recovery_.catalog->reserve(file.id);
    VMSHADOW_ASSIGN(SegmentInFile segment, open_segment_file(directory_, file));
    if (excluded_.contains(file.id)) {
      add_leftover(segment);
      continue;
    }
    recovery_.progress.bytes_total += segment.source.bytes();
    (segment.kind == format::SegmentKind::journal ? journal_ : archives_)
        .push_back(std::move(segment));
  }
  return {};
}

void Recoverer::add_leftover(const SegmentInFile& segment, std::string doubt) {
  if (!segment.head_trouble.empty()) {
    doubt = fmt::format("its head is damaged ({})", segment.head_trouble);
  }
  recovery_.leftovers.push_back({segment.where, std::move(doubt)});
}

bool Recoverer::is_newest_damaged() const {
  const auto is_of_newest = [&](const Damage& damage) {
    return !journal_.empty() && damage.at.segment == journal_.back().where.id;
  };
  return has_unknown_ ||
         std::any_of(recovery_.damage.begin(), recovery_.damage.end(), is_of_newest);
}

void Recoverer::advance(const SegmentInFile& segment) {
  recovery_.progress.bytes_done += segment.source.bytes();
  if (hooks_.progress) hooks_.progress(recovery_.progress);
}

bool Recoverer::read_sealed(const SegmentInFile& segment, bool may_be_torn,
                            const RecordSink& sink) {
  const SegmentId id = segment.where.id;
  const auto visit = [&](std::uint64_t offset, const format::RecordPrefix& prefix, ByteSpan front) {
    ++recovery_.records;
    sink.add({id, SegmentOffset{offset}}, prefix, front);
  };
  SkeletonOutcome outcome =
      visit_skeleton(segment.source, id, hooks_.check ? RecordVisitor([](auto...) {}) : visit);
  if (!outcome.sealed || (may_be_torn && !outcome.visited)) return false;
  if (!outcome.visited) {
    note(id, outcome.seal.skeleton_offset, 0, fmt::format("its skeleton: {}", outcome.trouble));
  }
  if (!outcome.visited && segment.kind == format::SegmentKind::journal) {
    recover_segment(id, segment.salt, segment.source, hooks_, recovery_, builder_);
  } else if (hooks_.check || !outcome.visited) {
    scan(segment, outcome, sink);
  }
  return true;
}

/// Reads every byte of a sealed segment that has its skeleton, or of an archive. What the skeleton
/// says of a damaged record goes to the sink as if it were good: reading it will fail, and only who
/// needs it is hurt.
void Recoverer::scan(const SegmentInFile& segment, const SkeletonOutcome& skeleton,
                     const RecordSink& sink) {
  const SegmentId id = segment.where.id;
  const auto damaged = [&](const BadRegion& region) {
    if (!skeleton.visited) {
      sink.add_bad(region);
      return;
    }
    if (region.offset >= skeleton.seal.skeleton_offset) {
      note(id, region.offset, region.end - region.offset, region.what);
      return;
    }
    bool found = false;
    const auto lost = visit_skeleton(
        segment.source, id,
        [&](std::uint64_t offset, const format::RecordPrefix& prefix, ByteSpan front) {
          if (offset < region.offset || offset >= region.end) return;
          found = true;
          Damage& damage =
              note(id, offset, format::kRecordPrefixBytes + prefix.body_bytes, region.what);
          damage.vm_name = index_->name_of(prefix.head.vm);
          damage.epoch = prefix.head.epoch;
          recovery_.damaged_places.emplace_back(
              prefix.head.vm,
              RecordPlace::of({id, SegmentOffset{offset}}, prefix, pages_of(prefix, front)));
          sink.add({id, SegmentOffset{offset}}, prefix, front);
        });
    if (!found || !lost.visited) note(id, region.offset, region.end - region.offset, region.what);
  };
  const SkeletonPlaces places(segment.source, id);
  BatchCheck batches(id, segment.salt);
  SegmentScanner scanner(segment.source, format::kSegmentHeadBytes);
  std::uint64_t reported = 0;
  while (true) {
    const ScanItem item = scanner.next();
    if (hooks_.progress && scanner.offset() - reported >= kScanProgressBytes) {
      reported = scanner.offset();
      hooks_.progress({recovery_.progress.bytes_done + reported, recovery_.progress.bytes_total});
    }
    if (std::holds_alternative<EndOfSegment>(item)) return;
    if (const auto* region = std::get_if<BadRegion>(&item)) {
      batches.skip();
      damaged(*region);
      continue;
    }
    const auto& record = std::get<GoodRecord>(item);
    ++recovery_.records;
    const bool is_own = !skeleton.visited || places.have(record);
    if (!is_own) {
      batches.skip();
    } else if (segment.kind == format::SegmentKind::journal &&
               !batches.add(record, scanner.offset())) {
      note(id, batches.begin(), scanner.offset() - batches.begin(),
           "the mark of the batch is not that of its records");
    }
    Status sound = hooks_.check ? hooks_.check(record) : Status();
    if (sound && !is_own) {
      sound = fail(Errc::corrupt, "another record stands here than the segment's skeleton says");
    }
    if (!sound) {
      damaged({record.offset, scanner.offset(), sound.error().message, record.prefix});
      continue;
    }
    sink.add({id, SegmentOffset{record.offset}}, record.prefix, record.body);
  }
}

void Recoverer::read_journal() {
  for (std::size_t i = 0; i < journal_.size(); ++i) {
    const SegmentInFile& segment = journal_[i];
    const SegmentId id = segment.where.id;
    const bool is_last = i + 1 == journal_.size();
    if (!segment.head_trouble.empty()) {
      if (is_last && (!segment.salt || durable_beyond(id, *segment.salt, segment.source,
                                                      format::kSegmentHeadBytes) == 0)) {
        recovery_.torn_segment = id;
        break;
      }
      builder_.add_bad(id, {0, format::kSegmentHeadBytes, segment.head_trouble, std::nullopt});
    }
    builder_.begin_segment(id);
    const RecordSink sink{[&](JournalPosition at, const format::RecordPrefix& prefix,
                              ByteSpan front) { builder_.add(at, prefix, front); },
                          [&](const BadRegion& region) { builder_.add_bad(id, region); }};
    const bool sealed = read_sealed(segment, is_last, sink);
    if (!sealed && is_last) {
      recover_last_segment(id, *segment.salt, segment.source, hooks_, recovery_, builder_);
    } else if (!sealed) {
      recover_segment(id, segment.salt, segment.source, hooks_, recovery_, builder_);
    }
    if (recovery_.torn_segment) break;
    recovery_.catalog->add(id, {format::SegmentKind::journal, segment.where.tier,
                                segment.source.bytes(), sealed, true, 0});
    advance(segment);
  }
  builder_.finish();
}

std::optional<std::vector<SegmentId>> Recoverer::sources_of(const SegmentInFile& archive) {
  SegmentScanner scanner(archive.source, format::kSegmentHeadBytes);
  const ScanItem first = scanner.next();
  const auto* record = std::get_if<GoodRecord>(&first);
  if (record == nullptr || record->prefix.head.type != RecordType::replace) return std::nullopt;
  auto replace = format::decode_replace(record->body);
  if (!replace) return std::nullopt;
  return std::move(replace->removed);
}

/// Whether an archive that no list names is part of the store: its replace record was lost, or it
/// was not written yet. In the second case all that it was made from is still there.
bool Recoverer::belongs(const SegmentInFile& archive) {
  const SegmentId id = archive.where.id;
  if (builder_.expected().contains(id)) return true;
  if (builder_.removed().contains(id)) return false;  // replaced itself
  const auto present = [&](SegmentId source) {
    const auto is = [&](const SegmentInFile& segment) { return segment.where.id == source; };
    return excluded_.contains(source) || std::any_of(journal_.begin(), journal_.end(), is) ||
           std::any_of(archives_.begin(), archives_.end(), is);
  };
  if (const auto sources = sources_of(archive)) {
    if (std::all_of(sources->begin(), sources->end(), present)) return false;
    stood_for_.insert(sources->begin(), sources->end());
    return true;
  }
  // It does not say: it may be all that is left of what is missing.
  return !std::all_of(builder_.expected().begin(), builder_.expected().end(),
                      [&](const auto& entry) { return present(entry.first); });
}

void Recoverer::read_archive(SegmentInFile& segment) {
  const SegmentId id = segment.where.id;
  if (!segment.head_trouble.empty()) note(id, 0, format::kSegmentHeadBytes, segment.head_trouble);
  std::uint64_t record_bytes = 0;
  const auto add = [&](JournalPosition at, const format::RecordPrefix& prefix, ByteSpan front) {
    if (prefix.head.type == RecordType::vm_state) {
      auto state = format::decode_vm_state(front);
      if (!state || vm_id(state->vm_name) != prefix.head.vm) return;
      index_->add_grant(prefix.head.vm, state->vm_name, prefix.head.generation);
      assembler_.add_state(prefix.head.vm, prefix.head.generation, *std::move(state));
      return;
    }
    if (!EpochAssembler::takes(prefix.head.type)) return;
    const std::uint64_t bytes = format::kRecordPrefixBytes + prefix.body_bytes;
    record_bytes += bytes + format::alignment_gap(bytes);
    if (const auto sound = assembler_.add_archived(at, prefix, front); !sound) {
      Damage& damage = note(id, at.offset.value, format::kRecordPrefixBytes + prefix.body_bytes,
                            sound.error().message);
      damage.vm_name = index_->name_of(prefix.head.vm);
      damage.epoch = prefix.head.epoch;
      assembler_.add_archived_damage(damage, prefix);
    }
  };
  const auto add_bad = [&](const BadRegion& region) {
    Damage& damage = note(id, region.offset, region.end - region.offset, region.what);
    // The last block of an archive, sealed before it counted, holds nothing but the seal.
    if (region.offset + format::kSealBlockBytes >= segment.source.bytes()) return;
    if (!region.prefix) {
      assembler_.add_unknown_loss(damage);
    } else if (EpochAssembler::takes(region.prefix->head.type)) {
      damage.vm_name = index_->name_of(region.prefix->head.vm);
      damage.epoch = region.prefix->head.epoch;
      assembler_.add_archived_damage(damage, *region.prefix);
    }
  };
  const RecordSink sink{add, add_bad};
  if (!read_sealed(segment, false, sink)) {
    // An archive is sealed before it counts: the seal is what is damaged.
    note(id, segment.source.bytes(), 0, "its seal is damaged");
    scan(segment, {}, sink);
  }
  recovery_.catalog->add(id, {format::SegmentKind::archive, segment.where.tier,
                              segment.source.bytes(), true, true, record_bytes});
  advance(segment);
}

void Recoverer::read_archives() {
  for (SegmentInFile& segment : archives_) {
    if (belongs(segment)) {
      read_archive(segment);
    } else {
      const SegmentId id = segment.where.id;
      const bool is_sure = builder_.removed().contains(id) ||
                           visit_skeleton(segment.source, id, [](auto...) {}).visited;
      if (!is_sure && !segment.head_trouble.empty()) {
        const std::string what =
            "its head is damaged and nothing tells what it is: what was written to it is lost";
        builder_.add_bad(id, {0, segment.source.bytes(), what, std::nullopt});
        has_unknown_ = true;
      }
      add_leftover(segment, is_sure ? "" : "it is damaged");
      advance(segment);
    }
  }
}

void Recoverer::note_missing() {
  std::uint64_t named = 0;
  for (const auto& [id, entry] : builder_.expected()) {
    if (recovery_.catalog->find(id) || recovery_.torn_segment == id || stood_for_.contains(id)) {
      continue;
    }
    // It stays on the list, or the next start would know nothing of it.
    recovery_.catalog->add(id, {entry.kind, 0, entry.bytes, entry.bytes > 0, true, 0, true});
    const bool is_front = journal_.empty() || id < journal_.front().where.id;
    // Those further on in the journal were noticed on the way.
    if (entry.kind == format::SegmentKind::journal && !is_front) continue;
    const Damage damage{{id, SegmentOffset{0}}, 0, "the segment's file is missing", {}, {}};
    assembler_.add_unknown_loss(damage);
    if (++named <= kMissingSegmentsNamedMax) builder_.damage().push_back(damage);
  }
}

Result<Recovery> Recoverer::run() {
  VMSHADOW_TRY(open_files());
  read_journal();
  for (const SegmentInFile& segment : journal_) {
    const SegmentId id = segment.where.id;
    if (recovery_.torn_segment == id) {
      const std::string what = "its beginning is damaged: what was written to it is lost";
      builder_.add_bad(id, {0, segment.source.bytes(), what, std::nullopt});
      add_leftover(segment, "its beginning is damaged");
    } else if (!builder_.expected().contains(id)) {
      archived_.insert(id);
    }
  }
  if (!archived_.empty()) return std::move(recovery_);  // to be run again without them
  read_archives();
  note_missing();
  assembler_.assemble(*index_, builder_.damage());
  recovery_.damage = std::move(builder_.damage());
  recovery_.unknown_bytes = builder_.unknown_bytes();
  if (is_newest_damaged()) {
    for (Recovery::Leftover& leftover : recovery_.leftovers) {
      if (leftover.doubt.empty()) leftover.doubt = "the newest segment of the journal is damaged";
    }
  }
  return std::move(recovery_);
}

/// How often reading starts over because a live store changed its segments meanwhile.
constexpr int kRecoveryAttemptsMax = 20;

/// Files' times tick more coarsely than writes come.
constexpr std::chrono::milliseconds kTimeTick{20};

/// A segment's file as it was at some moment. Space is reserved ahead of the writer, so the size
/// alone does not tell that it writes.
struct Seen {
  TierIndex tier{};
  std::uint64_t bytes{};
  fs::file_time_type written;
  bool operator==(const Seen&) const = default;
};
using Sight = std::map<SegmentId, Seen>;

Result<Sight> look(const StoreDirectory& directory) {
  VMSHADOW_ASSIGN(const auto listing, directory.list());
  Sight sight;
  for (const StoreDirectory::SegmentFile& file : listing.segments) {
    const std::string path = directory.segment_path(file.tier, file.id);
    std::error_code error;
    const auto bytes = fs::file_size(path, error);
    if (error) continue;
    const auto written = fs::last_write_time(path, error);
    if (!error) sight[file.id] = {file.tier, bytes, written};
  }
  return sight;
}

/// Whether a segment that is called damaged is not what it was: it came, went or was written
/// between two looks at it, and it was nobody's fault.
bool is_blurred(const std::vector<Damage>& damage, const Sight& before, const Sight& after) {
  const auto seen = [](const Sight& sight, SegmentId id) {
    const auto found = sight.find(id);
    return found == sight.end() ? std::optional<Seen>() : found->second;
  };
  const auto now = fs::file_time_type::clock::now();
  return std::any_of(damage.begin(), damage.end(), [&](const Damage& d) {
    const auto now_seen = seen(after, d.at.segment);
    return seen(before, d.at.segment) != now_seen ||
           (now_seen && now - now_seen->written < kTimeTick);
  });
}

Result<Recovery> recover_once(const StoreDirectory& directory, const ScanHooks& hooks) {
  std::set<SegmentId> excluded;
  while (true) {
    Recoverer recoverer(directory, hooks, excluded);
    VMSHADOW_ASSIGN(Recovery recovery, recoverer.run());
    if (recoverer.archived().empty()) return recovery;
    // A crash, or a store that is just at it, left journal segments that archives stand for.
    excluded.insert(recoverer.archived().begin(), recoverer.archived().end());
  }
}

}  // namespace

Result<Recovery> recover(const StoreDirectory& directory, const ScanHooks& hooks) {
  for (int attempt = 1;; ++attempt) {
    VMSHADOW_ASSIGN(const Sight before, look(directory));
    auto recovery = recover_once(directory, hooks);
    if (attempt == kRecoveryAttemptsMax) return recovery;
    if (!recovery) {
      if (recovery.error().code == Errc::not_found) continue;
      return recovery;
    }
    if (recovery->damage.empty()) return recovery;
    VMSHADOW_ASSIGN(const Sight after, look(directory));
    if (!is_blurred(recovery->damage, before, after)) return recovery;
  }
}

}  // namespace vmshadow::store
