#include "crypt/vm_key.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/kdf.h>
#include <openssl/params.h>

#include <algorithm>
#include <array>

#include "base/assert.h"

namespace vmshadow::crypt {
namespace {

constexpr std::string_view kRecordKeyInfo = "vmshadow record key 1";
constexpr std::string_view kKeyIdInfo = "vmshadow key id 1";

OSSL_PARAM octets(const char* name, ByteSpan bytes) {
  static std::byte none{};  // OpenSSL takes no null pointer, however few the bytes
  return OSSL_PARAM_construct_octet_string(
      name, bytes.empty() ? &none : const_cast<std::byte*>(bytes.data()), bytes.size());
}

}  // namespace

void hkdf_sha256(ByteSpan key, ByteSpan salt, ByteSpan info, MutableByteSpan out) {
  static EVP_KDF* const hkdf = EVP_KDF_fetch(nullptr, "HKDF", nullptr);
  VMSHADOW_ASSERT(hkdf != nullptr);
  EVP_KDF_CTX* const context = EVP_KDF_CTX_new(hkdf);
  VMSHADOW_ASSERT(context != nullptr);
  char digest[] = "SHA256";
  const std::array<OSSL_PARAM, 5> params = {
      OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
      octets(OSSL_KDF_PARAM_KEY, key), octets(OSSL_KDF_PARAM_SALT, salt),
      octets(OSSL_KDF_PARAM_INFO, info), OSSL_PARAM_construct_end()};
  const int derived = EVP_KDF_derive(context, reinterpret_cast<unsigned char*>(out.data()),
                                     out.size(), params.data());
  EVP_KDF_CTX_free(context);  // cleanses it
  VMSHADOW_ASSERT(derived == 1);
}

Result<VmKey> VmKey::derive(const SecretKey& key, const VmId& vm) {
  struct Bytes {
    std::array<std::byte, kKeyBytes> at{};
    ~Bytes() { OPENSSL_cleanse(at.data(), at.size()); }
  } record_key;
  hkdf_sha256(key.bytes(), vm.bytes, std::as_bytes(std::span(kRecordKeyInfo)), record_key.at);
  format::KeyId id;
  hkdf_sha256(key.bytes(), vm.bytes, std::as_bytes(std::span(kKeyIdInfo)), id);
  VMSHADOW_ASSIGN(SecretKey copy, SecretKey::copy_of(record_key.at));
  return VmKey(std::move(copy), id);
}

const VmKey* find_key(const VmKeys& keys, const format::KeyId& id) {
  const auto found =
      std::find_if(keys.begin(), keys.end(), [&](const VmKey& key) { return key.id() == id; });
  return found == keys.end() ? nullptr : &*found;
}

}  // namespace vmshadow::crypt
