// What a VM's records are sealed with, made from the key that its operator gave.
//
//   the operator's key ── HKDF-SHA256, salt: the VM's id ──┬─ "vmshadow record key 1"  the record
//   key
//                                                          └─ "vmshadow key id 1"      the key's id
//
// So one key given to several VMs is a different one in each, and the id gives nothing away.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "crypt/secret_key.h"
#include "format/sealed_record.h"

namespace vmshadow::crypt {

class VmKey {
 public:
  [[nodiscard]] static Result<VmKey> derive(const SecretKey& key, const VmId& vm);
  [[nodiscard]] const format::KeyId& id() const { return id_; }
  [[nodiscard]] const SecretKey& record_key() const { return record_key_; }

 private:
  VmKey(SecretKey record_key, const format::KeyId& id)
      : record_key_(std::move(record_key)), id_(id) {}
  SecretKey record_key_;
  format::KeyId id_;
};

/// A VM's keys: the first seals, all open. Never empty; immutable.
using VmKeys = std::vector<VmKey>;
using VmKeysPtr = std::shared_ptr<const VmKeys>;
[[nodiscard]] const VmKey* find_key(const VmKeys& keys, const format::KeyId& id);

/// RFC 5869.
void hkdf_sha256(ByteSpan key, ByteSpan salt, ByteSpan info, MutableByteSpan out);

}  // namespace vmshadow::crypt
