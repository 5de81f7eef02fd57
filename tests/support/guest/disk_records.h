// What the Linux witness writes to its disks: numbered records, so that the judge on the host can
// tell which of them a disk has. Shared as plain C types.
//
// Record n (from 1) goes to slot n % slots of kSlotBytes, and covers some of the slot's sectors:
// which ones follows from n. So most writes are parts of a page, and what a slot holds is a mixture
// of records that both sides can compute.
//
// The witness sets DiskCounts::issued before it writes a record and ::acknowledged once that and a
// flush have completed; one record at a time. Before it writes to a slot it reads it, and counts it
// as bad if that is not what it wrote.
#pragma once

#include <stdint.h>

namespace vmshadow::witness {

inline constexpr uint32_t kSectorBytes = 512;
inline constexpr uint32_t kSlotBytes = 4096;
inline constexpr uint32_t kSlotSectors = kSlotBytes / kSectorBytes;

/// One sector as written; one of zeroes was never written.
struct DiskSector {
  uint64_t record;
  uint32_t nonce;   ///< the run's first nonce word
  uint32_t sector;  ///< within the slot
  uint64_t check;   ///< disk_sector_check()
  uint64_t content[(kSectorBytes - 32) / 8];
  uint64_t record_again;
};
static_assert(sizeof(DiskSector) == kSectorBytes, "one sector");

constexpr uint64_t record_hash(uint64_t record) {
  uint64_t h = (record + 0x9e3779b97f4a7c15U) * 0xbf58476d1ce4e5b9U;
  h ^= h >> 27;
  h *= 0x94d049bb133111ebU;
  return h ^ h >> 31;
}
/// The sectors [first, end) of its slot that a record covers.
constexpr uint32_t record_first(uint64_t record) {
  // Every fourth one is a whole slot.
  return record % 4 == 0 ? 0 : static_cast<uint32_t>(record_hash(record) % kSlotSectors);
}
constexpr uint32_t record_end(uint64_t record) {
  if (record % 4 == 0) return kSlotSectors;
  const uint32_t first = record_first(record);
  return first + 1 + static_cast<uint32_t>((record_hash(record) >> 32) % (kSlotSectors - first));
}
constexpr bool record_covers(uint64_t record, uint32_t sector) {
  return record_first(record) <= sector && sector < record_end(record);
}
/// The newest record up to `upto` that covers a sector of a slot; 0: there is none.
constexpr uint64_t record_of_sector(uint64_t upto, uint64_t slots, uint64_t slot, uint32_t sector) {
  if (upto == 0) return 0;
  // The newest record of the slot.
  const uint64_t back = (upto % slots + slots - slot) % slots;
  if (back >= upto) return 0;
  for (uint64_t record = upto - back;; record -= slots) {
    if (record_covers(record, sector)) return record;
    if (record <= slots) return 0;
  }
}

inline uint64_t disk_sector_check(const DiskSector& sector) {
  return record_hash(sector.record ^ record_hash(uint64_t{sector.nonce} << 32 | sector.sector));
}
inline void compose_sector(DiskSector& into, uint64_t record, uint32_t nonce, uint32_t sector) {
  into.record = record;
  into.nonce = nonce;
  into.sector = sector;
  into.check = disk_sector_check(into);
  for (uint64_t i = 0; i < sizeof into.content / sizeof into.content[0]; ++i) {
    into.content[i] = record_hash(into.check + i);
  }
  into.record_again = record;
}
/// The record a sector belongs to, 0 if it was never written; kTornSector if it is none of this
/// run's, or not whole.
inline constexpr uint64_t kTornSector = ~uint64_t{0};
inline uint64_t record_in(const DiskSector& sector, uint32_t nonce, uint32_t place) {
  bool any = false;
  const auto* words = reinterpret_cast<const uint64_t*>(&sector);
  for (uint32_t i = 0; i < kSectorBytes / sizeof(uint64_t); ++i) any = any || words[i] != 0;
  if (!any) return 0;
  if (sector.nonce != nonce || sector.sector != place || sector.record != sector.record_again ||
      sector.check != disk_sector_check(sector)) {
    return kTornSector;
  }
  for (uint64_t i = 0; i < sizeof sector.content / sizeof sector.content[0]; ++i) {
    if (sector.content[i] != record_hash(sector.check + i)) return kTornSector;
  }
  return sector.record;
}

}  // namespace vmshadow::witness
