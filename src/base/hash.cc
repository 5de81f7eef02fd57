#include "base/hash.h"

#include <sys/random.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>

#include "base/assert.h"

namespace vmshadow {

std::uint64_t checksum64(ByteSpan bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

Result<PageHasher> PageHasher::create() {
  PageHasher hasher;
  static_assert(sizeof hasher.secret_ >= XXH3_SECRET_SIZE_MIN && sizeof hasher.secret_ <= 256);
  // getrandom never returns short for up to 256 bytes once it has started (random(7)).
  if (::getrandom(hasher.secret_.data(), hasher.secret_.size(), 0) !=
      static_cast<ssize_t>(hasher.secret_.size())) {
    return fail_errno(errno, "drawing the page hash secret");
  }
  return hasher;
}

PageHasher PageHasher::with_secret(ByteSpan secret) {
  PageHasher hasher;
  VMSHADOW_ASSERT(secret.size() == kSecretBytes);
  std::copy(secret.begin(), secret.end(), hasher.secret_.begin());
  return hasher;
}

PageHash PageHasher::hash(const std::byte* page) const {
  const XXH128_hash_t h = XXH3_128bits_withSecret(page, kPageBytes, secret_.data(), secret_.size());
  return PageHash{h.low64, h.high64};
}

}  // namespace vmshadow
