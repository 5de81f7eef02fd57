#include "crypt/secret_key.h"

#include <fmt/format.h>
#include <openssl/crypto.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>

namespace vmshadow::crypt {
namespace {

constexpr std::size_t kHeapBytes = std::size_t{256} << 10;
constexpr std::size_t kKeysMax = 16;

/// Where it cannot be locked (RLIMIT_MEMLOCK) it is left out of core files all the same.
void need_secure_heap() {
  static std::once_flag once;
  std::call_once(once, [] { CRYPTO_secure_malloc_init(kHeapBytes, kKeyBytes); });
}

int hex_digit(std::byte byte) {
  const char c = static_cast<char>(byte);
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

/// One line of 64 digits.
Result<SecretKey> parse_hex_key(ByteSpan line) {
  struct Bytes {
    std::array<std::byte, kKeyBytes> at{};
    ~Bytes() { OPENSSL_cleanse(at.data(), at.size()); }
  } key;
  if (line.size() != 2 * kKeyBytes) {
    return fail(Errc::invalid_argument,
                fmt::format("a line of {} characters, where a key is {} hex digits (or the file is "
                            "{} bytes, raw)",
                            line.size(), 2 * kKeyBytes, kKeyBytes));
  }
  for (std::size_t i = 0; i < kKeyBytes; ++i) {
    const int high = hex_digit(line[2 * i]);
    const int low = hex_digit(line[2 * i + 1]);
    if (high < 0 || low < 0) {
      return fail(Errc::invalid_argument, "a key holds something else than hex digits");
    }
    key.at[i] = static_cast<std::byte>(high << 4 | low);
  }
  return SecretKey::copy_of(key.at);
}

}  // namespace

void SecretKey::Free::operator()(std::byte* bytes) const {
  OPENSSL_secure_clear_free(bytes, kKeyBytes);
}

Result<SecretKey> SecretKey::copy_of(std::span<const std::byte, kKeyBytes> bytes) {
  need_secure_heap();
  auto* const copy = static_cast<std::byte*>(OPENSSL_secure_malloc(kKeyBytes));
  if (copy == nullptr) {
    return fail(Errc::no_space, "no room for one more key in the memory set aside for keys");
  }
  std::memcpy(copy, bytes.data(), kKeyBytes);
  return SecretKey(copy);
}

SecretText::~SecretText() { OPENSSL_cleanse(bytes_.data(), bytes_.size()); }

Result<std::vector<SecretKey>> parse_keys(ByteSpan text) {
  std::vector<SecretKey> keys;
  if (text.size() == kKeyBytes) {
    VMSHADOW_ASSIGN(SecretKey key, SecretKey::copy_of(text.first<kKeyBytes>()));
    keys.push_back(std::move(key));
    return keys;
  }
  while (!text.empty()) {
    const auto newline = std::find(text.begin(), text.end(), std::byte{'\n'});
    ByteSpan line = text.first(static_cast<std::size_t>(newline - text.begin()));
    text = text.subspan(std::min(text.size(), line.size() + 1));
    if (!line.empty() && line.back() == std::byte{'\r'}) line = line.first(line.size() - 1);
    if (keys.size() == kKeysMax) {
      return fail(Errc::invalid_argument, fmt::format("more than {} keys", kKeysMax));
    }
    VMSHADOW_ASSIGN(SecretKey key, parse_hex_key(line));
    keys.push_back(std::move(key));
  }
  if (keys.empty()) return fail(Errc::invalid_argument, "it is empty");
  return keys;
}

}  // namespace vmshadow::crypt
