// Memory that O_DIRECT takes: whole blocks of kDirectBlockBytes at addresses that are multiples of
// it.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include <vmshadow/types.h>

namespace vmshadow::io {

/// What direct writes and reads are multiples of: offset, length and address.
inline constexpr std::size_t kDirectBlockBytes = 4096;

[[nodiscard]] constexpr bool is_block_aligned(std::uint64_t value) {
  return value % kDirectBlockBytes == 0;
}
[[nodiscard]] inline bool is_block_aligned(const void* address) {
  return is_block_aligned(reinterpret_cast<std::uintptr_t>(address));
}
[[nodiscard]] constexpr std::uint64_t round_up_to_block(std::uint64_t value) {
  return (value + kDirectBlockBytes - 1) / kDirectBlockBytes * kDirectBlockBytes;
}

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  /// At least `bytes`, rounded up to whole blocks; not initialised.
  explicit AlignedBuffer(std::size_t bytes)
      : bytes_(round_up_to_block(bytes)),
        data_(static_cast<std::byte*>(
            std::aligned_alloc(is_large() ? kHugePageBytes : kDirectBlockBytes, bytes_))) {
    if (data_ == nullptr && bytes_ > 0) throw std::bad_alloc();
    // A disk that takes a page at a time is faster with fewer, larger ones. Only an offer.
    if (is_large()) ::madvise(data_.get(), bytes_, MADV_HUGEPAGE);
  }

  [[nodiscard]] std::byte* data() { return data_.get(); }
  [[nodiscard]] const std::byte* data() const { return data_.get(); }
  [[nodiscard]] std::size_t size() const { return bytes_; }
  [[nodiscard]] MutableByteSpan span() { return {data_.get(), bytes_}; }
  [[nodiscard]] ByteSpan span() const { return {data_.get(), bytes_}; }

 private:
  static constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;
  [[nodiscard]] bool is_large() const { return bytes_ > 0 && bytes_ % kHugePageBytes == 0; }
  struct Free {
    void operator()(std::byte* bytes) const { std::free(bytes); }
  };
  std::size_t bytes_ = 0;
  std::unique_ptr<std::byte, Free> data_;
};

}  // namespace vmshadow::io
