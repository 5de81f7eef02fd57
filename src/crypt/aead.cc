#include "crypt/aead.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "base/assert.h"

namespace vmshadow::crypt {
namespace {

constexpr std::size_t kBlockBytes = 16;
constexpr std::size_t kGcmNonceBytes = 12;
static_assert(2 * kGcmNonceBytes == kNonceBytes);

struct FreeContext {
  void operator()(EVP_CIPHER_CTX* context) const { EVP_CIPHER_CTX_free(context); }  // cleanses it
};
using Context = std::unique_ptr<EVP_CIPHER_CTX, FreeContext>;

Context new_context() {
  Context context(EVP_CIPHER_CTX_new());
  VMSHADOW_ASSERT(context != nullptr);
  return context;
}

/// Looked up once: each look-up takes OpenSSL's locks. For as long as the process.
const EVP_CIPHER* cipher(const char* name) {
  const EVP_CIPHER* found = EVP_CIPHER_fetch(nullptr, name, nullptr);
  VMSHADOW_ASSERT(found != nullptr);
  return found;
}
const EVP_CIPHER* aes_ecb() {
  static const EVP_CIPHER* const found = cipher("AES-256-ECB");
  return found;
}
const EVP_CIPHER* aes_gcm() {
  static const EVP_CIPHER* const found = cipher("AES-256-GCM");
  return found;
}

const unsigned char* uchars(const std::byte* bytes) {
  return reinterpret_cast<const unsigned char*>(bytes);
}
unsigned char* uchars(std::byte* bytes) { return reinterpret_cast<unsigned char*>(bytes); }

/// Cleansed when it goes.
template <std::size_t size>
struct Secret {
  std::array<unsigned char, size> bytes{};
  Secret() = default;
  Secret(const Secret&) = delete;
  Secret& operator=(const Secret&) = delete;
  ~Secret() { OPENSSL_cleanse(bytes.data(), size); }
};

/// The key for one message: CMAC of two blocks, "X" and the nonce's first half behind a counter.
void derive_message_key(const SecretKey& key, const Nonce& nonce, Secret<kKeyBytes>& out) {
  const Context context = new_context();
  int written = 0;
  const auto encrypt = [&](const unsigned char* from, unsigned char* to, int bytes) {
    VMSHADOW_ASSERT(EVP_EncryptUpdate(context.get(), to, &written, from, bytes) == 1);
    VMSHADOW_ASSERT(written == bytes);
  };
  VMSHADOW_ASSERT(EVP_EncryptInit_ex2(context.get(), aes_ecb(), uchars(key.bytes().data()), nullptr,
                                      nullptr) == 1);
  EVP_CIPHER_CTX_set_padding(context.get(), 0);
  Secret<kBlockBytes> subkey;
  const Secret<kBlockBytes> zero;
  encrypt(zero.bytes.data(), subkey.bytes.data(), kBlockBytes);
  const unsigned carry = subkey.bytes[0] >> 7;
  for (std::size_t i = 0; i < kBlockBytes; ++i) {
    const unsigned next = i + 1 < kBlockBytes ? subkey.bytes[i + 1] >> 7 : 0u;
    subkey.bytes[i] = static_cast<unsigned char>(subkey.bytes[i] << 1 | next);
  }
  subkey.bytes[kBlockBytes - 1] ^= static_cast<unsigned char>(carry * 0x87u);
  Secret<2 * kBlockBytes> blocks;
  for (std::size_t half = 0; half < 2; ++half) {
    unsigned char* const block = blocks.bytes.data() + half * kBlockBytes;
    block[1] = static_cast<unsigned char>(half + 1);
    block[2] = 'X';
    std::memcpy(block + 4, nonce.data(), kGcmNonceBytes);
    for (std::size_t i = 0; i < kBlockBytes; ++i) block[i] ^= subkey.bytes[i];
  }
  encrypt(blocks.bytes.data(), out.bytes.data(), 2 * kBlockBytes);
}

/// GCM under the message's key, with the associated data taken in.
Context begin(bool sealing, const SecretKey& key, const Nonce& nonce,
              std::span<const ByteSpan> associated) {
  Secret<kKeyBytes> message_key;
  derive_message_key(key, nonce, message_key);
  Context context = new_context();
  VMSHADOW_ASSERT(EVP_CipherInit_ex2(context.get(), aes_gcm(), message_key.bytes.data(),
                                     uchars(nonce.data()) + kGcmNonceBytes, sealing ? 1 : 0,
                                     nullptr) == 1);
  int taken = 0;
  for (const ByteSpan piece : associated) {
    VMSHADOW_ASSERT(EVP_CipherUpdate(context.get(), nullptr, &taken, uchars(piece.data()),
                                     static_cast<int>(piece.size())) == 1);
  }
  return context;
}

void update(EVP_CIPHER_CTX* context, ByteSpan from, MutableByteSpan out) {
  VMSHADOW_ASSERT(from.size() == out.size() && from.size() < std::size_t{1} << 30);
  if (from.empty()) return;
  int written = 0;
  VMSHADOW_ASSERT(EVP_CipherUpdate(context, uchars(out.data()), &written, uchars(from.data()),
                                   static_cast<int>(from.size())) == 1);
  VMSHADOW_ASSERT(static_cast<std::size_t>(written) == from.size());
}

}  // namespace

Result<Nonce> random_nonce() {
  Nonce nonce;
  if (::getrandom(nonce.data(), nonce.size(), 0) != static_cast<ssize_t>(nonce.size())) {
    return fail_errno(errno, "drawing a nonce from the kernel's random source");
  }
  return nonce;
}

void seal(const SecretKey& key, const Nonce& nonce, std::span<const ByteSpan> associated,
          ByteSpan plain, MutableByteSpan out, std::span<std::byte, kTagBytes> tag) {
  const Context context = begin(true, key, nonce, associated);
  update(context.get(), plain, out);
  unsigned char rest[kBlockBytes];
  int written = 0;
  VMSHADOW_ASSERT(EVP_CipherFinal_ex(context.get(), rest, &written) == 1 && written == 0);
  VMSHADOW_ASSERT(
      EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_GET_TAG, kTagBytes, tag.data()) == 1);
}

bool open(const SecretKey& key, const Nonce& nonce, std::span<const ByteSpan> associated,
          ByteSpan sealed, MutableByteSpan out, std::span<const std::byte, kTagBytes> tag) {
  const Context context = begin(false, key, nonce, associated);
  update(context.get(), sealed, out);
  std::array<std::byte, kTagBytes> expected;
  std::copy(tag.begin(), tag.end(), expected.begin());
  VMSHADOW_ASSERT(
      EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_SET_TAG, kTagBytes, expected.data()) == 1);
  unsigned char rest[kBlockBytes];
  int written = 0;
  if (EVP_CipherFinal_ex(context.get(), rest, &written) == 1) return true;
  std::fill(out.begin(), out.end(), std::byte{});
  return false;
}

}  // namespace vmshadow::crypt
