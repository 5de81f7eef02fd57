#include "store/directory.h"

#include <fmt/format.h>
#include <sys/random.h>

#include <cerrno>
#include <charconv>
#include <string_view>

#include "base/hash.h"
#include "store/damage.h"

namespace vmshadow::store {
namespace {

constexpr std::string_view kIdentityName = "VMSHADOW-STORE";
constexpr std::string_view kIdentityNewName = "VMSHADOW-STORE.new";
constexpr std::string_view kLockName = "LOCK";
constexpr std::string_view kSegmentsName = "segments";
constexpr std::size_t kIdentityBytesMax = 4096;
constexpr std::string_view kIdentityHead = "vmshadow-store ";

std::string join(const std::string& path, std::string_view name) {
  return fmt::format("{}/{}", path, name);
}

std::string checksum_line(std::string_view before) {
  return fmt::format("checksum {:016x}\n", checksum64(std::as_bytes(std::span(before))));
}

/// The names a store whose creation was cut short may have left.
bool is_ours_before_identity(const std::string& name) {
  return name == kLockName || name == kIdentityNewName || name == kSegmentsName;
}

Status write_identity(const std::string& path, const format::StoreId& id, io::FileSystem& files) {
  const std::string text = encode_identity(id);
  const std::string fresh = join(path, kIdentityNewName);
  // Left by a creation that was cut short; nobody else writes here, we hold the lock.
  if (auto removed = files.remove(fresh); !removed && removed.error().code != Errc::not_found) {
    return removed;
  }
  VMSHADOW_ASSIGN(const auto file, files.create(fresh));
  const ByteSpan bytes = std::as_bytes(std::span(text));
  VMSHADOW_TRY(file->write({&bytes, 1}, 0, io::Durability::durable));
  VMSHADOW_TRY(files.rename(fresh, join(path, kIdentityName)));
  return files.sync_directory(path);
}

}  // namespace

std::string store_id_text(const format::StoreId& id) { return VmId{id}.hex(); }

std::string encode_identity(const format::StoreId& id) {
  std::string text =
      fmt::format("{}{}\nid {}\n", kIdentityHead, format::kStoreVersion, store_id_text(id));
  return text + checksum_line(text);
}

Result<format::StoreId> decode_identity(const std::string& text) {
  if (!text.starts_with(kIdentityHead)) {
    return fail(Errc::corrupt, "is not a vmshadow store's identity");
  }
  unsigned version = 0;
  const char* const begin = text.data() + kIdentityHead.size();
  const auto [end, error] = std::from_chars(begin, text.data() + text.size(), version);
  if (error != std::errc{} || version == 0) return fail(Errc::corrupt, "has no version");
  // The version comes first: what follows it is the other program's business.
  if (version != format::kStoreVersion) {
    return fail(Errc::version,
                fmt::format("is of store version {}, but this program knows {}; use {} vmshadow",
                            version, format::kStoreVersion,
                            version > format::kStoreVersion ? "a newer" : "an older"));
  }
  const std::size_t checksum_at = text.find("checksum ");
  if (checksum_at == std::string::npos ||
      text.substr(checksum_at) != checksum_line(std::string_view(text).substr(0, checksum_at))) {
    return fail(Errc::corrupt,
                "fails its checksum; restore it from any segment's head "
                "(docs/store-format.md says how)");
  }
  format::StoreId id;
  const std::size_t id_at = text.find("\nid ") + 4;
  for (std::size_t i = 0; i < id.size(); ++i) {
    std::uint8_t byte = 0;
    const char* const digits = text.data() + id_at + 2 * i;
    if (id_at + 2 * i + 2 > checksum_at ||
        std::from_chars(digits, digits + 2, byte, 16).ptr != digits + 2) {
      return fail(Errc::corrupt, "has no id");
    }
    id[i] = std::byte{byte};
  }
  return id;
}

std::string StoreDirectory::segment_path(SegmentId segment) const {
  return fmt::format("{}/{}/{}", path_, kSegmentsName, segment_file_name(segment));
}

Result<StoreDirectory> StoreDirectory::open(const std::string& path) {
  if (const auto names = io::list_directory(path); !names) {
    Error error = names.error();
    if (error.code == Errc::not_found) {
      error.message = fmt::format(
          "there is no store '{}': give the directory that vmshadow-store writes to", path);
    }
    return fail(std::move(error));
  }
  const std::string identity = join(path, kIdentityName);
  auto text = io::read_small_file(identity, kIdentityBytesMax);
  if (!text) {
    if (text.error().code != Errc::not_found) return fail(std::move(text).error());
    return fail(
        Errc::invalid_argument,
        fmt::format("'{}' is not a vmshadow store: it has no {} file", path, kIdentityName));
  }
  auto id = decode_identity(*text);
  if (!id) {
    return fail(id.error().code, fmt::format("'{}' {}", identity, id.error().message));
  }
  return StoreDirectory(path, *id);
}

Result<io::FileLock> StoreDirectory::lock(const std::string& path) {
  VMSHADOW_TRY(io::make_directory(path));
  auto lock = io::FileLock::acquire(join(path, kLockName));
  if (!lock) {
    if (lock.error().code == Errc::in_use) {
      return fail(Errc::in_use, fmt::format("the store '{}' is open in another process: {}", path,
                                            lock.error().message));
    }
    return fail(std::move(lock).error().with_context(
        fmt::format("the store '{}' cannot be written", path)));
  }
  return lock;
}

Result<StoreDirectory> StoreDirectory::open_or_create(const std::string& path,
                                                      io::FileSystem& files) {
  VMSHADOW_ASSIGN(const auto names, io::list_directory(path));
  bool has_identity = false;
  const std::string* foreign = nullptr;
  for (const std::string& name : names) {
    if (name == kIdentityName) has_identity = true;
    if (!is_ours_before_identity(name)) foreign = &name;
  }
  if (!has_identity) {
    if (foreign != nullptr) {
      return fail(Errc::invalid_argument,
                  fmt::format("'{}' is not a vmshadow store and not empty (it holds '{}'): give an "
                              "empty or a new directory",
                              path, *foreign));
    }
    const std::string segments = join(path, kSegmentsName);
    VMSHADOW_TRY(io::make_directory(segments));
    VMSHADOW_ASSIGN(const auto left, io::list_directory(segments));
    if (!left.empty()) {
      return fail(Errc::corrupt,
                  fmt::format("the store '{}' has segments but no {} file: restore that file "
                              "(docs/store-format.md says how)",
                              path, kIdentityName));
    }
    format::StoreId id;
    if (::getrandom(id.data(), id.size(), 0) != static_cast<ssize_t>(id.size())) {
      return fail_errno(errno, "drawing the store's id");
    }
    VMSHADOW_TRY(write_identity(path, id, files));
  }
  return open(path);
}

Result<StoreDirectory::Listing> StoreDirectory::list() const {
  VMSHADOW_ASSIGN(const auto names, io::list_directory(segments_path()));
  Listing listing;
  for (const std::string& name : names) {
    if (const auto id = parse_segment_file_name(name); id && id->value > 0) {
      listing.segments.push_back(*id);
    } else {
      listing.foreign.push_back(name);
    }
  }
  return listing;
}

}  // namespace vmshadow::store
