// 256 bits that nobody but us may see: in OpenSSL's secure heap (locked into memory where the limit
// allows it, left out of core files), zeroed when they go, never copied, never printed.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

namespace vmshadow::crypt {

inline constexpr std::size_t kKeyBytes = 32;

class SecretKey {
 public:
  /// Errc::no_space: the secure heap holds some 8000 keys.
  [[nodiscard]] static Result<SecretKey> copy_of(std::span<const std::byte, kKeyBytes> bytes);
  [[nodiscard]] std::span<const std::byte, kKeyBytes> bytes() const {
    return std::span<const std::byte, kKeyBytes>(bytes_.get(), kKeyBytes);
  }

 private:
  struct Free {
    void operator()(std::byte* bytes) const;
  };
  explicit SecretKey(std::byte* bytes) : bytes_(bytes) {}
  std::unique_ptr<std::byte, Free> bytes_;
};

/// A file's or command's bytes on their way to become keys, zeroed when they go.
class SecretText {
 public:
  static constexpr std::size_t kBytesMax = 4096;
  SecretText() : bytes_(kBytesMax) {}
  ~SecretText();
  SecretText(const SecretText&) = delete;
  SecretText& operator=(const SecretText&) = delete;
  /// What is left to fill.
  [[nodiscard]] MutableByteSpan room() { return MutableByteSpan(bytes_).subspan(size_); }
  void add(std::size_t bytes) { size_ += bytes; }
  [[nodiscard]] ByteSpan text() const { return ByteSpan(bytes_).first(size_); }

 private:
  std::vector<std::byte> bytes_;
  std::size_t size_ = 0;
};

/// The keys in a key file: 32 bytes as they are, or lines of 64 hex digits each. The first is what
/// is sealed with, the others only open what was sealed before. Errc::invalid_argument says what is
/// wrong, without a byte of it.
[[nodiscard]] Result<std::vector<SecretKey>> parse_keys(ByteSpan text);

}  // namespace vmshadow::crypt
