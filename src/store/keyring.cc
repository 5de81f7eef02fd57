#include "store/keyring.h"

#include <fmt/format.h>

#include "crypt/sealed_record.h"

namespace vmshadow::store {

Error missing_key(Error reason, const std::string& vm_name) {
  reason.message += fmt::format(
      "; epochs of VM '{}' are encrypted, and without their key nobody can read them", vm_name);
  return reason;
}

Error wrong_key(const std::string& difference, const std::string& vm_name) {
  return {Errc::permission,
          fmt::format("the key of VM '{}' is wrong: {}; without the right one its "
                      "encrypted epochs cannot be read, by anybody",
                      vm_name, difference)};
}

Result<crypt::VmKeysPtr> Keyring::fetch(const VmId& vm, const std::string& name) const {
  if (source_ == nullptr) {
    return fail(Errc::not_found,
                fmt::format("VM '{}' has no key: give --keys or --key-command", name));
  }
  VMSHADOW_ASSIGN(const std::vector<crypt::SecretKey> secrets, source_->keys_of(name));
  auto keys = std::make_shared<crypt::VmKeys>();
  for (const crypt::SecretKey& secret : secrets) {
    VMSHADOW_ASSIGN(crypt::VmKey key, crypt::VmKey::derive(secret, vm));
    keys->push_back(std::move(key));
  }
  return crypt::VmKeysPtr(std::move(keys));
}

Result<crypt::VmKeysPtr> Keyring::keys_of(const VmId& vm, const std::string& name) const {
  {
    const std::lock_guard lock(mutex_);
    if (const auto known = known_.find(vm); known != known_.end()) return known->second;
  }
  VMSHADOW_ASSIGN(crypt::VmKeysPtr keys, fetch(vm, name));
  const std::lock_guard lock(mutex_);
  ++changes_;
  return known_.emplace(vm, std::move(keys)).first->second;
}

void Keyring::set(const VmId& vm, crypt::VmKeysPtr keys) {
  const std::lock_guard lock(mutex_);
  known_[vm] = std::move(keys);
  ++changes_;
}

Status Keyring::open(const std::string& name, const format::RecordPrefix& prefix, ByteSpan body,
                     std::vector<std::byte>& out) const {
  const auto keys = keys_of(prefix.head.vm, name);
  if (!keys) return fail(missing_key(keys.error(), name));
  auto opened = crypt::open_record(**keys, prefix, body, out);
  if (!opened && opened.error().code == Errc::permission) {
    return fail(wrong_key(opened.error().message, name));
  }
  return opened;
}

}  // namespace vmshadow::store
