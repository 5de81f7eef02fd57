// XAES-256-GCM (c2sp.org/XAES-256-GCM): AES-256-GCM under a key and a 192-bit nonce that may be
// drawn at random for ever. The first half of the nonce and the key make the key of this one
// message (SP 800-108 in counter mode over CMAC-AES), the second half is GCM's nonce. Who seals
// 2^80 messages has seen two with the same nonce with a chance of 2^-32; no counter need be kept.
//
// Functions without state; safe from any thread.
#pragma once

#include <array>
#include <cstddef>
#include <span>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "crypt/secret_key.h"

namespace vmshadow::crypt {

inline constexpr std::size_t kNonceBytes = 24;
inline constexpr std::size_t kTagBytes = 16;

using Nonce = std::array<std::byte, kNonceBytes>;
/// From the kernel, each by itself: a copy of a running machine does not draw the same again, where
/// the kernel notices that it was copied (vmgenid).
[[nodiscard]] Result<Nonce> random_nonce();

/// Encrypts `plain` into `out` (as many bytes; not overlapping) and makes the tag over it and the
/// associated data, the pieces of which count as one.
void seal(const SecretKey& key, const Nonce& nonce, std::span<const ByteSpan> associated,
          ByteSpan plain, MutableByteSpan out, std::span<std::byte, kTagBytes> tag);
/// False: the tag does not match, and `out` is zero.
[[nodiscard]] bool open(const SecretKey& key, const Nonce& nonce,
                        std::span<const ByteSpan> associated, ByteSpan sealed, MutableByteSpan out,
                        std::span<const std::byte, kTagBytes> tag);

}  // namespace vmshadow::crypt
