// The two hashes of this project, both XXH3: 64 bits as a checksum against accidents, 128 bits with
// a secret as a page's identity (a guest must not be able to make two pages that look the same).
#pragma once

#include <array>
#include <compare>
#include <cstdint>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

namespace vmshadow {

/// XXH3-64 with seed 0.
[[nodiscard]] std::uint64_t checksum64(ByteSpan bytes);

struct PageHash {
  std::uint64_t low{};
  std::uint64_t high{};
  bool operator==(const PageHash&) const = default;
};

/// XXH3-128 of pages under a secret: the hash means nothing to who does not know it. Immutable;
/// safe from any thread.
class PageHasher {
 public:
  static constexpr std::size_t kSecretBytes = 192;
  /// Draws a fresh secret with getrandom(2).
  [[nodiscard]] static Result<PageHasher> create();
  /// Hashes as the one whose secret() it was. `secret` is kSecretBytes long.
  [[nodiscard]] static PageHasher with_secret(ByteSpan secret);
  [[nodiscard]] ByteSpan secret() const { return secret_; }
  /// The hash of kPageBytes bytes at `page`.
  [[nodiscard]] PageHash hash(const std::byte* page) const;

 private:
  PageHasher() = default;
  alignas(64) std::array<std::byte, kSecretBytes> secret_{};
};

}  // namespace vmshadow
