// Seals an epoch's records and opens them again (their form: format/sealed_record.h).
//
// The tag covers what the record is and where it belongs: the first 48 bytes of its prefix
// (version, type, length, sequence, VM, generation, epoch), the key's id, and what of the body
// stays readable (a group's page keys). A record that is moved to another place is not opened
// there.
#pragma once

#include <cstdint>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "crypt/aead.h"
#include "crypt/vm_key.h"
#include "format/record.h"

namespace vmshadow::crypt {

/// Appends a record: `head` and `body` are those of a plain one whose type is_sealable(), the body
/// at most format::kSealablePlainBytesMax. Every record its own random nonce. Returns the prefix
/// checksum (what an epoch's chain is made of).
std::uint64_t seal_record(const VmKey& key, const Nonce& nonce, const format::RecordHead& head,
                          ByteSpan body, std::vector<std::byte>& out);
/// Opens a sealed record whose prefix and checksum hold; `out` becomes the plain body.
/// Errc::permission: it was sealed with another key. Errc::corrupt: it is not what was sealed, or
/// not where.
[[nodiscard]] Status open_record(const VmKeys& keys, const format::RecordPrefix& prefix,
                                 ByteSpan body, std::vector<std::byte>& out);

}  // namespace vmshadow::crypt
