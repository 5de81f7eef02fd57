// Moves what one epoch has in segments that are to be given up into archives.
//
// Records go byte for byte where all of a group is needed; else its pages are decoded, checked and
// encoded anew with others of their epoch, under the key they were sealed with if they were.
// Without that key a sealed group goes as it is, with the pages marked that no longer count. Of a
// damaged group the pages that hold their own checksums go on, others are taken from where the
// store has the same content once more; the rest goes as lost pages that say so. A sealed group is
// lost as a whole.
#pragma once

#include <array>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "delta/page_group_codec.h"
#include "store/archives.h"
#include "store/page_copies.h"
#include "store/page_heat.h"

namespace vmshadow::store {

class EpochMover {
 public:
  EpochMover(Archiver::Ground& ground, const std::set<SegmentId>& sources,
             const ArchiveOptions& options, const Archiver::Placement& placement,
             Archives& archives, ArchiveReport& report)
      : ground_(ground),
        sources_(sources),
        options_(options),
        placement_(placement),
        archives_(archives),
        report_(report),
        copies_(ground.index, ground.segments),
        raw_(format::kGroupPagesMax * kPageBytes) {}

  Result<EpochIndexPtr> move(const VmId& vm, const std::string& name, const EpochIndexPtr& epoch,
                             const PageHeat& heat);

 private:
  /// Where pages are packed together: pages of one tier, sealed with one key or not at all.
  struct Destination {
    TierKind tier;
    std::optional<format::KeyId> key_id;
    auto operator<=>(const Destination&) const = default;
  };
  /// Pages that wait to become a group of their own.
  struct Repacked {
    std::vector<format::PageKey> keys;
    std::vector<std::byte> bytes;
  };
  struct LivePage {
    std::uint32_t group;
    std::uint32_t slot;
    format::PageKey key;
    TierKind tier;
  };
  [[nodiscard]] bool leaves(const RecordPlace& place) const {
    return sources_.contains(place.segment());
  }
  /// Whether a record that could not be read is to be given up. Not while the disk as a whole does
  /// not answer: that is no damage to the record.
  [[nodiscard]] bool is_lost(const RecordPlace& place, const Error& error) const {
    if (error.code == Errc::corrupt) return true;
    if (error.code != Errc::io || !options_.lose_unreadable) return false;
    std::array<std::byte, format::kSegmentHeadBytes> head;
    return ground_.segments.read_raw(place.segment(), {}, head).has_value();
  }
  /// Appends a record to the archive for what is not pages.
  Result<RecordPlace> append_other(const format::RecordHead& head, ByteSpan body) {
    return archives_.writer(placement_.others).append(head, body);
  }
  [[nodiscard]] std::vector<LivePage> live_pages(const PageHeat& heat) const;
  Status move_groups(const std::vector<LivePage>& live);
  Status move_group(std::span<const LivePage> live);
  Status move_sealed_part(std::span<const LivePage> live);
  Status copy_unopened(std::span<const LivePage> live);
  Status copy_group(std::span<const LivePage> live, TierKind tier, std::size_t page_count);
  Status repack(std::span<const LivePage> live, const format::PageGroup& group,
                const std::optional<format::KeyId>& key_id);
  Status repack_page(const Destination& to, format::PageKey key, const std::byte* page);
  Status move_damaged(std::span<const LivePage> live, const Error& error);
  Status flush(const Destination& to, Repacked& from);
  Result<std::vector<std::byte>> group_record(const Destination& to, const Repacked& from);
  Status lose(std::span<const LivePage> live, const Error& error);
  Status move_lost(std::span<const LivePage> live, ByteSpan text);
  void moved(const format::PageKey& key, std::uint32_t slot) {
    moves_.push_back({key, {static_cast<std::uint32_t>(new_groups_.size() - 1), slot}});
  }
  Status move_zeros();
  Status move_device();
  Status move_machine();
  Status move_numbers();
  Status move_losses();
  Status move_loss(format::LossKind kind, const std::optional<Damage>& damage,
                   std::optional<RecordPlace>& place);
  Status pace(std::uint64_t bytes) {
    if (!options_.pace || options_.pace(bytes)) return {};
    return fail(Errc::cancelled, "archiving was stopped");
  }
  [[nodiscard]] format::RecordHead head(format::RecordType type) const {
    return {type, 0, owner_.id, old_->info.generation, old_->info.epoch};
  }
  [[nodiscard]] Damage damage_at(const RecordPlace& place, const Error& error) const {
    return {place.position(), place.record_bytes(), error.message, owner_.name, place.epoch()};
  }
  void note(const RecordPlace& place, const Error& error) {
    report_.damage.push_back(damage_at(place, error));
  }

  Archiver::Ground& ground_;
  const std::set<SegmentId>& sources_;
  const ArchiveOptions& options_;
  const Archiver::Placement& placement_;
  Archives& archives_;
  ArchiveReport& report_;
  PageCopies copies_;
  std::vector<std::byte> raw_;
  SegmentFiles::Record record_;
  std::vector<std::byte> opened_;
  std::set<VmId> without_key_;  ///< VMs whose key was asked for and is not to be had
  delta::PageGroupEncoder encoder_;

  // Of the epoch being moved.
  SegmentFiles::Owner owner_;
  EpochIndexPtr old_;
  std::shared_ptr<EpochIndex> fresh_;
  std::map<Destination, Repacked> repacked_;
  std::vector<RecordPlace> new_groups_;
  std::vector<PageTable::Move> moves_;
};

}  // namespace vmshadow::store
