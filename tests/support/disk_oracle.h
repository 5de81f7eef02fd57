// Whether an epoch's disks are those that its RAM believes in: the Linux witness numbers what it
// writes to them, and keeps in RAM what it was told is durable (guest/disk_records.h).
#pragma once

#include <cstdint>
#include <string>

#include <vmshadow/result.h>
#include <vmshadow/shadow_reader.h>

namespace vmshadow::test {

struct DiskVerdict {
  std::uint64_t acknowledged{};  ///< records, of all disks
  std::uint64_t missing{};       ///< sectors older than RAM was told
  std::uint64_t future{};        ///< sectors newer than RAM has issued
  std::uint64_t torn{};          ///< sectors of nobody
  std::string first;             ///< the first of them, in words
  [[nodiscard]] bool is_exact() const { return missing == 0 && future == 0 && torn == 0; }
  DiskVerdict& operator+=(const DiskVerdict& other);
};

/// Of all disks that the witness in the epoch's RAM writes to: the first ones of the machine, in
/// order. Errc::not_found if there is no witness, or an image without that many disks.
[[nodiscard]] Result<DiskVerdict> judge_disks(const EpochImage& image);

}  // namespace vmshadow::test
