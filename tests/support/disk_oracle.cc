#include "support/disk_oracle.h"

#include <fmt/format.h>

#include <array>
#include <cstring>
#include <string>

#include "guest/disk_records.h"
#include "support/witness_report.h"

namespace vmshadow::test {
namespace {

using namespace vmshadow::witness;

class DiskJudge {
 public:
  DiskJudge(const WitnessControl& control, std::size_t disk)
      : counts_(control.disks[disk]), disk_(disk) {
    std::memcpy(&nonce_, control.nonce.data(), sizeof nonce_);
    verdict_.acknowledged = counts_.acknowledged;
  }

  void look_at(std::uint64_t slot, ByteSpan content) {
    for (std::uint32_t i = 0; i < kSlotSectors; ++i) {
      DiskSector sector;
      std::memcpy(&sector, content.data() + std::size_t{i} * kSectorBytes, kSectorBytes);
      const std::uint64_t found = record_in(sector, nonce_, i);
      const std::uint64_t due = record_of_sector(counts_.acknowledged, counts_.slots, slot, i);
      // One that was issued and not yet acknowledged may be there.
      if (found == due || found == record_of_sector(counts_.issued, counts_.slots, slot, i)) {
        continue;
      }
      const std::uint64_t before = verdict_.missing + verdict_.future + verdict_.torn;
      ++(found == kTornSector     ? verdict_.torn
         : found > counts_.issued ? verdict_.future
                                  : verdict_.missing);
      if (before != 0) continue;
      verdict_.first = fmt::format(
          "disk {}, slot {}, sector {}: record {} where {} is due (acknowledged {}, issued {})",
          disk_, slot, i, found == kTornSector ? "of nobody" : std::to_string(found), due,
          counts_.acknowledged, counts_.issued);
    }
  }
  [[nodiscard]] const DiskVerdict& verdict() const { return verdict_; }

 private:
  const WitnessControl::Disk counts_;
  const std::size_t disk_;
  std::uint32_t nonce_{};
  DiskVerdict verdict_;
};

}  // namespace

DiskVerdict& DiskVerdict::operator+=(const DiskVerdict& other) {
  acknowledged += other.acknowledged;
  missing += other.missing;
  future += other.future;
  torn += other.torn;
  if (first.empty()) first = other.first;
  return *this;
}

Result<DiskVerdict> judge_disks(const EpochImage& image) {
  VMSHADOW_ASSIGN(const WitnessControl control, find_witness_control(image));
  const MachineDescription& machine = image.machine();
  if (control.disks.empty() || control.disks.size() > machine.disks.size()) {
    return fail(Errc::not_found, fmt::format("the witness writes to {} disks, the epoch has {}",
                                             control.disks.size(), machine.disks.size()));
  }
  DiskVerdict verdict;
  for (std::size_t disk = 0; disk < control.disks.size(); ++disk) {
    DiskJudge judge(control, disk);
    const BlockIndex block{static_cast<std::uint16_t>(machine.layout.blocks.size() + disk)};
    for (std::uint64_t slot = 0; slot < control.disks[disk].slots; ++slot) {
      std::array<std::byte, kPageBytes> page;
      VMSHADOW_TRY(image.read_page(block, PageNumber{slot}, page));
      judge.look_at(slot, page);
    }
    verdict += judge.verdict();
  }
  return verdict;
}

}  // namespace vmshadow::test
