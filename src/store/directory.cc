#include "store/directory.h"

#include <fmt/format.h>
#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <string_view>

#include "base/hash.h"
#include "store/damage.h"

namespace vmshadow::store {
namespace {

constexpr std::string_view kIdentityName = "VMSHADOW-STORE";
constexpr std::string_view kTierIdentityName = "VMSHADOW-TIER";
constexpr std::string_view kTiersName = "TIERS";
constexpr std::string_view kNewSuffix = ".new";
constexpr std::string_view kLockName = "LOCK";
constexpr std::string_view kSegmentsName = "segments";
constexpr std::size_t kTiersBytesMax = 64 * 1024;
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
  return name == kLockName || name == fmt::format("{}{}", kIdentityName, kNewSuffix) ||
         name == kSegmentsName;
}

/// Writes a small file whole or not at all.
Status write_text(const std::string& directory, std::string_view name, const std::string& text,
                  io::FileSystem& files) {
  const std::string fresh = join(directory, fmt::format("{}{}", name, kNewSuffix));
  // Left by a writer that was cut short; nobody else writes here, we hold the lock.
  if (auto removed = files.remove(fresh); !removed && removed.error().code != Errc::not_found) {
    return removed;
  }
  VMSHADOW_ASSIGN(const auto file, files.create(fresh));
  const ByteSpan bytes = std::as_bytes(std::span(text));
  VMSHADOW_TRY(file->write({&bytes, 1}, 0, io::Durability::durable));
  VMSHADOW_TRY(files.rename(fresh, join(directory, name)));
  return files.sync_directory(directory);
}

/// The id in an identity file; Errc::not_found if there is none.
Result<format::StoreId> read_identity(const std::string& path) {
  VMSHADOW_ASSIGN(const std::string text, io::read_small_file(path, kIdentityBytesMax));
  auto id = decode_identity(text);
  if (!id) return fail(id.error().code, fmt::format("'{}' {}", path, id.error().message));
  return id;
}

/// How TIERS names the store's own directory, wherever that is moved to.
constexpr std::string_view kOwnPath = ".";

/// Tiers by the paths they are known by: the store's own directory, however it was spelled, by the
/// store's.
std::vector<TierDirectory> with_own_path(const std::string& path,
                                         std::vector<TierDirectory> tiers) {
  for (TierDirectory& tier : tiers) {
    if (tier.path == kOwnPath || io::is_same_directory(tier.path, path)) tier.path = path;
  }
  return tiers;
}

/// The store's tiers as its directory says, or the directory itself.
Result<std::vector<TierDirectory>> read_tiers(const std::string& path) {
  const std::string file = join(path, kTiersName);
  const auto text = io::read_small_file(file, kTiersBytesMax);
  if (!text && text.error().code == Errc::not_found) {
    return std::vector<TierDirectory>{{TierKind::ssd, path, 0}};
  }
  if (!text) return fail(text.error());
  auto tiers = decode_tiers(*text);
  if (!tiers) return fail(tiers.error().code, fmt::format("'{}' {}", file, tiers.error().message));
  return with_own_path(path, *std::move(tiers));
}

/// Whether a tier is there and the store's own.
Status check_tier(const std::string& store_path, const format::StoreId& id,
                  const TierDirectory& tier) {
  if (tier.path == store_path) return {};
  const auto found = read_identity(join(tier.path, kTierIdentityName));
  if (!found && found.error().code == Errc::not_found) {
    return fail(Errc::not_found,
                fmt::format("'{}' is a {} tier of the store '{}' but holds no {} file: is its disk "
                            "mounted? (If the disk is gone for good: remove '{}' and name the "
                            "tiers that are left with --ssd and --hdd; what it held is lost.)",
                            tier.path, tier_kind_name(tier.kind), store_path, kTierIdentityName,
                            join(store_path, kTiersName)));
  }
  if (!found) return fail(found.error());
  if (*found != id) {
    return fail(Errc::invalid_argument,
                fmt::format("'{}' is a tier of another store (id {}, this one is {})", tier.path,
                            store_id_text(*found), store_id_text(id)));
  }
  return {};
}

/// Makes a directory a tier of the store, unless it is.
Status make_tier(const std::string& store_path, const format::StoreId& id,
                 const TierDirectory& tier, io::FileSystem& files) {
  VMSHADOW_TRY(io::make_directory(tier.path));
  if (tier.path != store_path) {
    const auto found = read_identity(join(tier.path, kTierIdentityName));
    if (!found && found.error().code != Errc::not_found) return fail(found.error());
    if (!found) {
      VMSHADOW_ASSIGN(const auto names, io::list_directory(tier.path));
      for (const std::string& name : names) {
        if (name == "lost+found" || name == kSegmentsName ||
            name == fmt::format("{}{}", kTierIdentityName, kNewSuffix)) {
          continue;
        }
        return fail(Errc::invalid_argument,
                    fmt::format("'{}' cannot become a tier of the store '{}', it is not empty (it "
                                "holds '{}'): give an empty or a new directory",
                                tier.path, store_path, name));
      }
      VMSHADOW_TRY(write_text(tier.path, kTierIdentityName, encode_identity(id), files));
    }
  }
  VMSHADOW_TRY(io::make_directory(join(tier.path, kSegmentsName)));
  return files.sync_directory(tier.path);
}

/// A tier that is left out must be there and have no segment in it. Its spare files go: nobody
/// would look for them again.
Status leave_out(const std::string& store_path, const format::StoreId& id,
                 const TierDirectory& tier, io::FileSystem& files) {
  VMSHADOW_TRY(check_tier(store_path, id, tier));
  const std::string segments = join(tier.path, kSegmentsName);
  const auto names = io::list_directory(segments);
  if (!names && names.error().code == Errc::not_found) return {};
  if (!names) return fail(names.error());
  for (const std::string& name : *names) {
    if (!parse_segment_file_name(name)) continue;
    return fail(Errc::invalid_argument,
                fmt::format("the store has segments in '{}' ('{}'): give it with --{}", tier.path,
                            name, tier_kind_name(tier.kind)));
  }
  for (const std::string& name : *names) {
    if (parse_spare_file_name(name)) VMSHADOW_TRY(files.remove(join(segments, name)));
  }
  return files.sync_directory(segments);
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

std::string encode_tiers(const std::vector<TierDirectory>& tiers) {
  std::string text = "vmshadow-tiers 1\n";
  for (const TierDirectory& tier : tiers) {
    text += fmt::format("{} {}\n", tier_kind_name(tier.kind), tier.path);
  }
  return text + checksum_line(text);
}

Result<std::vector<TierDirectory>> decode_tiers(const std::string& text) {
  const std::size_t checksum_at = text.rfind("checksum ");
  if (checksum_at == std::string::npos ||
      text.substr(checksum_at) != checksum_line(std::string_view(text).substr(0, checksum_at))) {
    return fail(Errc::corrupt,
                "fails its checksum; remove it and name all tiers again with --ssd and --hdd");
  }
  std::vector<TierDirectory> tiers;
  std::string_view rest = std::string_view(text).substr(0, checksum_at);
  for (bool first = true; !rest.empty(); first = false) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    if (first) {
      if (line != "vmshadow-tiers 1") return fail(Errc::version, "is of another version");
    } else if (line.starts_with("ssd ") || line.starts_with("hdd ")) {
      tiers.push_back({line.starts_with("ssd") ? TierKind::ssd : TierKind::hdd,
                       std::string(line.substr(4)), 0});
    } else {
      return fail(Errc::corrupt, "has a line that is no tier");
    }
  }
  if (tiers.empty()) return fail(Errc::corrupt, "names no tier");
  return tiers;
}

std::string StoreDirectory::segments_path(TierIndex tier) const {
  return join(tiers_[tier].path, kSegmentsName);
}

std::string StoreDirectory::segment_path(TierIndex tier, SegmentId segment) const {
  return fmt::format("{}/{}", segments_path(tier), segment_file_name(segment));
}

std::string StoreDirectory::spare_path(TierIndex tier, SegmentId segment) const {
  return join(segments_path(tier), spare_file_name(segment));
}

std::string StoreDirectory::aside_path(TierIndex tier, SegmentId segment) const {
  return join(segments_path(tier), aside_file_name(segment));
}

Result<StoreDirectory> StoreDirectory::open_with(const std::string& path,
                                                 std::vector<TierDirectory> tiers) {
  auto id = read_identity(join(path, kIdentityName));
  if (!id && id.error().code == Errc::not_found) {
    return fail(
        Errc::invalid_argument,
        fmt::format("'{}' is not a vmshadow store: it has no {} file", path, kIdentityName));
  }
  if (!id) return fail(std::move(id).error());
  for (const TierDirectory& tier : tiers) VMSHADOW_TRY(check_tier(path, *id, tier));
  return StoreDirectory(path, *id, std::move(tiers));
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
  VMSHADOW_ASSIGN(auto tiers, read_tiers(path));
  return open_with(path, std::move(tiers));
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

Result<StoreDirectory> StoreDirectory::open_or_create(
    const std::string& path, io::FileSystem& files, const std::vector<TierDirectory>& named_tiers) {
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
    VMSHADOW_TRY(write_text(path, kIdentityName, encode_identity(id), files));
  }
  VMSHADOW_ASSIGN(const auto recorded, read_tiers(path));
  if (named_tiers.empty()) return open_with(path, recorded);
  std::vector<TierDirectory> tiers = with_own_path(path, named_tiers);

  VMSHADOW_ASSIGN(const auto id, read_identity(join(path, kIdentityName)));
  for (const TierDirectory& old : recorded) {
    const bool stays = std::any_of(tiers.begin(), tiers.end(),
                                   [&](const TierDirectory& t) { return t.path == old.path; });
    // Made anew, the directory that a disk is to be mounted on would be taken for the disk.
    VMSHADOW_TRY(stays ? check_tier(path, id, old) : leave_out(path, id, old, files));
  }
  for (const TierDirectory& tier : tiers) VMSHADOW_TRY(make_tier(path, id, tier, files));
  std::vector<TierDirectory> written = tiers;
  for (TierDirectory& tier : written) {
    if (tier.path == path) tier.path = kOwnPath;
  }
  const std::string text = encode_tiers(written);
  if (const auto now = io::read_small_file(join(path, kTiersName), kTiersBytesMax);
      !now || *now != text) {
    VMSHADOW_TRY(write_text(path, kTiersName, text, files));
  }
  return open_with(path, std::move(tiers));
}

Result<StoreDirectory::Listing> StoreDirectory::list() const {
  Listing listing;
  for (TierIndex tier = 0; tier < tiers_.size(); ++tier) {
    VMSHADOW_ASSIGN(const auto names, io::list_directory(segments_path(tier)));
    for (const std::string& name : names) {
      if (const auto id = parse_segment_file_name(name); id && id->value > 0) {
        listing.segments.push_back({*id, tier});
      } else if (const auto spare = parse_spare_file_name(name); spare && spare->value > 0) {
        listing.spares.push_back({*spare, tier});
      } else if (const auto aside = parse_aside_file_name(name); aside && aside->value > 0) {
        listing.aside.push_back({*aside, tier});
      } else {
        listing.foreign.push_back(join(segments_path(tier), name));
      }
    }
  }
  const auto by_id = [](const SegmentFile& a, const SegmentFile& b) { return a.id < b.id; };
  std::sort(listing.segments.begin(), listing.segments.end(), by_id);
  const auto twice =
      std::adjacent_find(listing.segments.begin(), listing.segments.end(),
                         [](const SegmentFile& a, const SegmentFile& b) { return a.id == b.id; });
  if (twice != listing.segments.end()) {
    return fail(Errc::corrupt, fmt::format("'{}' and '{}' are the same segment: move one away",
                                           segment_path(twice->tier, twice->id),
                                           segment_path(std::next(twice)->tier, twice->id)));
  }
  return listing;
}

}  // namespace vmshadow::store
