// A disk in memory, with holes where nothing was written, that can be told to fail.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include <vmshadow/block_device.h>

namespace vmshadow::test {

class MemoryDevice final : public BlockDevice {
 public:
  static constexpr std::uint64_t kClusterBytes = 4096;

  explicit MemoryDevice(std::uint64_t bytes, bool read_only = false)
      : read_only_(read_only),
        bytes_(bytes),
        written_((bytes + kClusterBytes - 1) / kClusterBytes) {}

  [[nodiscard]] std::uint64_t bytes() const override { return bytes_.size(); }
  [[nodiscard]] bool read_only() const override { return read_only_; }
  [[nodiscard]] Status read(std::uint64_t offset, MutableByteSpan into) override {
    const std::lock_guard lock(mutex_);
    VMSHADOW_TRY(trouble());
    std::copy_n(at(offset), into.size(), into.begin());
    return {};
  }
  [[nodiscard]] Status write(std::uint64_t offset, ByteSpan from) override {
    const std::lock_guard lock(mutex_);
    VMSHADOW_TRY(trouble());
    std::copy(from.begin(), from.end(), at(offset));
    for (auto cluster = offset / kClusterBytes; cluster * kClusterBytes < offset + from.size();
         ++cluster) {
      written_[cluster] = true;
    }
    return {};
  }
  [[nodiscard]] Status write_zeroes(std::uint64_t offset, std::uint64_t bytes,
                                    bool may_unmap) override {
    const std::lock_guard lock(mutex_);
    VMSHADOW_TRY(trouble());
    std::fill_n(at(offset), bytes, std::byte{});
    if (may_unmap) unmap(offset, bytes);
    return {};
  }
  [[nodiscard]] Status trim(std::uint64_t offset, std::uint64_t bytes) override {
    return write_zeroes(offset, bytes, true);
  }
  [[nodiscard]] Status flush() override {
    const std::lock_guard lock(mutex_);
    VMSHADOW_TRY(trouble());
    ++flushes_;
    return {};
  }
  [[nodiscard]] Result<std::vector<BlockExtent>> extents(std::uint64_t offset,
                                                         std::uint64_t bytes) override {
    const std::lock_guard lock(mutex_);
    VMSHADOW_TRY(trouble());
    std::vector<BlockExtent> extents;
    for (const std::uint64_t end = offset + bytes; offset < end;) {
      const std::uint64_t next = std::min(end, (offset / kClusterBytes + 1) * kClusterBytes);
      const bool hole = !written_[offset / kClusterBytes];
      extents.push_back({next - offset, hole, hole});
      offset = next;
    }
    return extents;
  }

  /// From now on everything fails so.
  void fail_with(Error error) {
    const std::lock_guard lock(mutex_);
    trouble_ = std::move(error);
  }
  [[nodiscard]] std::vector<std::byte> content() const {
    const std::lock_guard lock(mutex_);
    return bytes_;
  }
  [[nodiscard]] int flushes() const {
    const std::lock_guard lock(mutex_);
    return flushes_;
  }

 private:
  [[nodiscard]] Status trouble() const {
    if (trouble_) return fail(*trouble_);
    return {};
  }
  [[nodiscard]] std::vector<std::byte>::iterator at(std::uint64_t offset) {
    return bytes_.begin() + static_cast<std::ptrdiff_t>(offset);
  }
  void unmap(std::uint64_t offset, std::uint64_t bytes) {
    const std::uint64_t end = offset + bytes;
    for (auto cluster = (offset + kClusterBytes - 1) / kClusterBytes;
         (cluster + 1) * kClusterBytes <= end ||
         (cluster < written_.size() && end == bytes_.size());
         ++cluster) {
      written_[cluster] = false;
    }
  }

  const bool read_only_;
  mutable std::mutex mutex_;
  std::vector<std::byte> bytes_;
  std::vector<bool> written_;
  int flushes_ = 0;
  std::optional<Error> trouble_;
};

}  // namespace vmshadow::test
