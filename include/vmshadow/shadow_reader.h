// The seam before replay: reading committed epochs back. Needs neither a network nor a primary.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <vmshadow/clock.h>
#include <vmshadow/machine.h>
#include <vmshadow/result.h>
#include <vmshadow/types.h>

namespace vmshadow {

struct EpochInfo {
  Epoch epoch;
  Generation generation;
  bool full{};                   ///< holds every page by itself
  WallTime cut_wall;             ///< when the VM stood still (primary's clock)
  WallTime committed_wall;       ///< when it was durable (store's clock)
  std::uint64_t pages{};         ///< pages stored, zero pages included, unchanged ones not
  std::uint64_t raw_bytes{};     ///< what those pages weigh uncompressed
  std::uint64_t stored_bytes{};  ///< what the epoch takes in the journal
  std::uint64_t device_bytes{};
  bool encrypted{};  ///< it can be read with its VM's key alone
  bool pinned{};     ///< kept whatever the retention policy says
  std::string tier;  ///< where most of it lies ("ssd", "hdd"); empty: the store has no tiers
};

struct VmInfo {
  std::string name;
  VmId id;
  Generation generation;          ///< newest granted
  std::vector<EpochInfo> epochs;  ///< committed, rising
  std::string retention;          ///< its policy as text; empty: the store names none
};

/// One committed epoch, whole. Reads are safe from several threads.
class EpochImage {
 public:
  virtual ~EpochImage() = default;
  [[nodiscard]] virtual const EpochInfo& info() const = 0;
  [[nodiscard]] virtual const MachineDescription& machine() const = 0;
  /// Device FULL sections followed by 0x00, as captured.
  [[nodiscard]] virtual Result<std::vector<std::byte>> device_state() const = 0;
  /// Reads one page of a RAM block or disk into `out` (kPageBytes bytes). A page no epoch ever held
  /// is zero.
  [[nodiscard]] virtual Status read_page(BlockIndex block, PageNumber page,
                                         MutableByteSpan out) const = 0;
  /// Calls `visit` once for each page of `block` that an epoch holds, in whatever order is cheapest
  /// to read; `data` is null for a zero page and else valid during the call. Pages not visited are
  /// zero. Stops at the first error, its own or the visitor's.
  using PageVisitor = std::function<Status(PageNumber page, const std::byte* data)>;
  [[nodiscard]] virtual Status for_each_page(BlockIndex block, const PageVisitor& visit) const = 0;
};

class ShadowReader {
 public:
  virtual ~ShadowReader() = default;
  /// All VMs, by name.
  [[nodiscard]] virtual Result<std::vector<VmInfo>> vms() const = 0;
  /// One VM. Errc::not_found names the VMs that exist.
  [[nodiscard]] virtual Result<VmInfo> vm(const std::string& name) const = 0;
  /// One committed epoch, whole or not at all: Errc::not_found if it was never committed,
  /// Errc::corrupt (naming segment, offset and epoch) if a record it needs is damaged; whatever is
  /// in the way of its key if it is encrypted.
  [[nodiscard]] virtual Result<std::unique_ptr<EpochImage>> open(const std::string& vm_name,
                                                                 Epoch epoch) const = 0;
};

}  // namespace vmshadow
