#include "store/archiver.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "store/archives.h"
#include "store/epoch_mover.h"
#include "store/page_heat.h"

namespace vmshadow::store {

using format::RecordType;

namespace {

/// Damage is told of before any segment goes: it may be one that shows it.
bool concerns(const EpochIndex& epoch, const std::set<SegmentId>& sources) {
  return has_untold_damage(epoch) ||
         std::any_of(epoch.uses.begin(), epoch.uses.end(),
                     [&](const SegmentUse& use) { return sources.contains(use.segment); });
}

std::uint64_t live_bytes(const JournalIndex& index, const std::set<SegmentId>& segments) {
  std::uint64_t bytes = 0;
  for (const auto& [id, live] : index.totals().live_bytes) {
    if (segments.contains(id)) bytes += live;
  }
  return bytes;
}

}  // namespace

Result<ArchiveReport> Archiver::run(const std::vector<SegmentId>& sources,
                                    const Placement& placement, const ArchiveOptions& options) {
  ArchiveReport report;
  const std::set<SegmentId> leaving(sources.begin(), sources.end());
  const std::vector<SegmentId> sorted(leaving.begin(), leaving.end());
  Archives archives(ground_, sorted, options, live_bytes(ground_.index, leaving));
  EpochMover mover(ground_, leaving, options, placement, archives, report);
  std::map<VmId, std::map<Epoch, EpochIndexPtr>> changes;

  const auto write = [&]() -> Status {
    for (const VmId& vm : ground_.index.ids()) {
      const std::vector<EpochIndexPtr> epochs = ground_.index.epochs(vm);
      std::optional<PageHeat> heat;
      for (const EpochIndexPtr& epoch : epochs) {
        if (!concerns(*epoch, leaving)) continue;
        if (!heat) heat.emplace(epochs);
        VMSHADOW_ASSIGN(changes[vm][epoch->info.epoch],
                        mover.move(vm, ground_.index.name_of(vm), epoch, *heat));
      }
    }
    return archives.finish();
  };
  if (auto written = write(); !written) {
    archives.discard();
    return fail(std::move(written).error());
  }

  std::vector<SegmentId> made;
  format::Replace replace{sorted, {}, {}};
  for (const ArchiveWriter::Made& segment : archives.segments()) {
    made.push_back(segment.id);
    replace.added.push_back({segment.id, segment.bytes, format::SegmentKind::archive});
    ground_.catalog.add(segment.id, {format::SegmentKind::archive, segment.tier, segment.bytes,
                                     true, false, segment.record_bytes});
  }
  LogWriter::Note note;
  note.head = {RecordType::replace, 0, {}, {}, {}};
  note.body = [&](std::vector<std::byte>& out, const format::JournalPosition& durable) {
    replace.durable = durable;
    format::append_body(out, replace);
  };
  const auto list = [&](bool done) {
    ground_.catalog.set_listed(sorted, !done);
    ground_.catalog.set_listed(made, done);
  };
  note.writing = [&] { list(true); };
  note.refused = [&] { list(false); };
  if (auto noted = ground_.log.note(std::move(note)); !noted) {
    for (const SegmentId id : made) ground_.catalog.remove(id);
    // Where the record may have reached the disk all the same, the next start sees to which of the
    // two counts: both must be there.
    if (noted.error().code == Errc::no_space) archives.discard();
    return fail(std::move(noted).error().with_context("archiving"));
  }

  for (const auto& [vm, epochs] : changes) ground_.index.replace_epochs(vm, epochs);
  report.written_bytes = archives.written_bytes();
  remove(sorted, report);
  return report;
}

void Archiver::remove(const std::vector<SegmentId>& segments, ArchiveReport& report) {
  std::set<TierIndex> tiers;
  for (const SegmentId id : segments) {
    const SegmentFacts facts = *ground_.catalog.find(id);
    const std::string path = ground_.catalog.directory().segment_path(facts.tier, id);
    ground_.catalog.remove(id);
    if (facts.missing) continue;
    ground_.segments.forget(id);
    report.removed_bytes += facts.bytes;
    tiers.insert(facts.tier);
    if (const auto removed = ground_.spares.give_up(id, facts.tier, ground_.files);
        !removed && removed.error().code != Errc::not_found) {
      spdlog::warn("a segment that is no longer needed stays behind: {}", removed.error().message);
      report.left_behind.push_back(path);
    }
  }
  for (const TierIndex tier : tiers) {
    const std::string path = ground_.catalog.directory().segments_path(tier);
    if (const auto synced = ground_.files.sync_directory(path); !synced) {
      spdlog::warn("segments that were removed may come back after a crash: {}",
                   synced.error().message);
    } else {
      ground_.spares.names_are_durable(tier);
    }
  }
}

}  // namespace vmshadow::store
