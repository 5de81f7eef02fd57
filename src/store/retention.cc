#include "store/retention.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <optional>
#include <string_view>
#include <unordered_set>

#include "base/assert.h"

namespace vmshadow::store {

using std::chrono::seconds;

namespace {

struct LevelName {
  std::string_view name;
  seconds RetentionPolicy::*reach;
};
/// Densest first.
constexpr std::array<LevelName, 4> kLevels = {{
    {"window", &RetentionPolicy::window},
    {"minutely", &RetentionPolicy::minutely},
    {"hourly", &RetentionPolicy::hourly},
    {"daily", &RetentionPolicy::daily},
}};

struct Unit {
  char letter;
  std::int64_t seconds;
};
/// Largest first.
constexpr std::array<Unit, 4> kUnits = {{{'d', 86'400}, {'h', 3'600}, {'m', 60}, {'s', 1}}};

std::string reach_text(seconds reach) {
  if (reach.count() == 0) return "0";
  const auto unit = std::find_if(kUnits.begin(), kUnits.end(),
                                 [&](const Unit& u) { return reach.count() % u.seconds == 0; });
  return fmt::format("{}{}", reach.count() / unit->seconds, unit->letter);
}

std::optional<seconds> parse_reach(std::string_view text) {
  std::int64_t number = 0;
  const char* end = text.data() + text.size();
  const auto read = std::from_chars(text.data(), end, number);
  if (read.ec != std::errc() || number < 0) return std::nullopt;
  if (read.ptr == end && number == 0) return seconds{0};
  if (end - read.ptr != 1) return std::nullopt;
  const auto unit = std::find_if(kUnits.begin(), kUnits.end(),
                                 [&](const Unit& u) { return u.letter == *read.ptr; });
  std::int64_t product = 0;
  if (unit == kUnits.end() || __builtin_mul_overflow(number, unit->seconds, &product)) {
    return std::nullopt;
  }
  return seconds{product};
}

constexpr std::int64_t kSecondNs = 1'000'000'000;

/// The earliest time that `reach` covers; the beginning of time if that is further than it goes.
std::int64_t horizon_ns(std::int64_t now_ns, seconds reach) {
  std::int64_t reach_ns = 0;
  std::int64_t horizon = 0;
  if (__builtin_mul_overflow(reach.count(), kSecondNs, &reach_ns) ||
      __builtin_sub_overflow(now_ns, reach_ns, &horizon)) {
    return std::numeric_limits<std::int64_t>::min();
  }
  return horizon;
}

/// The bucket a time is in; buckets before 1970 have negative numbers.
constexpr std::int64_t bucket_of(std::int64_t ns, std::int64_t bucket_ns) {
  return ns / bucket_ns - (ns % bucket_ns < 0 ? 1 : 0);
}

/// Where the levels of a policy begin, seen from the newest epoch.
class Thinning {
 public:
  Thinning(const RetentionPolicy& policy, std::int64_t now_ns)
      : now_ns_(now_ns), window_ns_(horizon_ns(now_ns, policy.window)), last_ns_(window_ns_) {
    const std::array<std::pair<seconds, std::int64_t>, 3> coarser = {
        {{policy.minutely, 60}, {policy.hourly, 3'600}, {policy.daily, 86'400}}};
    for (const auto& [reach, bucket_s] : coarser) {
      if (reach.count() == 0) continue;
      const std::int64_t bucket_ns = bucket_s * kSecondNs;
      levels_[level_count_++] = {bucket_ns, bucket_of(last_ns_, bucket_ns)};
      last_ns_ = horizon_ns(now_ns, reach);
    }
  }

  [[nodiscard]] bool in_window(std::int64_t ns) const { return ns >= window_ns_; }
  [[nodiscard]] bool is_dated_ahead(std::int64_t ns) const { return ns > now_ns_; }

  struct Bucket {
    std::size_t level{};
    std::int64_t number{};
    bool operator==(const Bucket&) const = default;
  };
  /// Of the coarsest level that has begun for all of the time's bucket.
  [[nodiscard]] std::optional<Bucket> bucket(std::int64_t ns) const {
    for (std::size_t level = level_count_; level-- > 0;) {
      const std::int64_t number = bucket_of(ns, levels_[level].bucket_ns);
      if (number < levels_[level].open) return Bucket{level, number};
    }
    return std::nullopt;
  }
  [[nodiscard]] bool is_gone(std::int64_t ns) const {
    if (level_count_ == 0) return ns < window_ns_;
    const std::int64_t bucket_ns = levels_[level_count_ - 1].bucket_ns;
    return bucket_of(ns, bucket_ns) < bucket_of(last_ns_, bucket_ns);
  }

 private:
  struct Level {
    std::int64_t bucket_ns{};
    std::int64_t open{};  ///< the first bucket that is not yet thinned
  };
  std::int64_t now_ns_;
  std::int64_t window_ns_;
  std::int64_t last_ns_;  ///< how far the last level reaches
  std::array<Level, 3> levels_{};
  std::size_t level_count_ = 0;
};

struct BucketHash {
  std::size_t operator()(const Thinning::Bucket& bucket) const {
    return (static_cast<std::size_t>(bucket.number) << 2) ^ bucket.level;
  }
};

/// The first of `epochs` that is in the window: those behind it are, too.
std::size_t first_in_window(std::span<const DatedEpoch> epochs, const Thinning& thinning) {
  return static_cast<std::size_t>(std::find_if(epochs.begin(), epochs.end(),
                                               [&](const DatedEpoch& e) {
                                                 return thinning.in_window(e.committed.ns) &&
                                                        !thinning.is_dated_ahead(e.committed.ns);
                                               }) -
                                  epochs.begin());
}

}  // namespace

namespace {

constexpr seconds kReachMax{std::chrono::hours(24 * 365 * 100)};
/// A vm_state record lists the epochs that are kept.
constexpr std::int64_t kThinnedEpochsMax = 50'000;

}  // namespace

Status check_policy(const RetentionPolicy& policy) {
  const LevelName* denser = nullptr;
  for (const LevelName& level : kLevels) {
    const seconds reach = policy.*level.reach;
    if (reach.count() < 0) {
      return fail(Errc::invalid_argument,
                  fmt::format("the retention's {} reaches {} s back; give 0 to leave it out",
                              level.name, reach.count()));
    }
    if (reach.count() == 0) continue;
    if (denser != nullptr && reach < policy.*denser->reach) {
      return fail(Errc::invalid_argument,
                  fmt::format("the retention's {}={} reaches less far than its {}={}; make it at "
                              "least that or 0 to leave it out",
                              level.name, reach_text(reach), denser->name,
                              reach_text(policy.*denser->reach)));
    }
    if (reach > kReachMax) {
      return fail(Errc::invalid_argument, fmt::format("the retention's {} reaches over 100 years "
                                                      "back: give less",
                                                      level.name));
    }
    denser = &level;
  }
  const auto kept = policy.minutely / std::chrono::minutes(1) +
                    policy.hourly / std::chrono::hours(1) + policy.daily / std::chrono::hours(24);
  if (kept > kThinnedEpochsMax) {
    return fail(Errc::invalid_argument,
                fmt::format("the retention would keep {} epochs behind its window, over the limit "
                            "of {}: let minutely or hourly reach less far back",
                            kept, kThinnedEpochsMax));
  }
  return {};
}

Result<RetentionPolicy> parse_policy(const std::string& text, const RetentionPolicy& base) {
  RetentionPolicy policy = base;
  std::array<bool, kLevels.size()> given{};
  for (std::string_view rest = text; !rest.empty();) {
    const std::size_t comma = rest.find(',');
    const std::string_view part = rest.substr(0, comma);
    const auto bad = [&](std::string_view why) {
      return fail(Errc::invalid_argument, fmt::format("retention part '{}' {}; write for example "
                                                      "window=10m,minutely=1h,hourly=1d,daily=30d",
                                                      part, why));
    };
    if (comma != std::string_view::npos && comma + 1 == rest.size()) {
      return fail(Errc::invalid_argument, fmt::format("retention '{}' ends with a comma", text));
    }
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
    const std::size_t equals = part.find('=');
    if (equals == std::string_view::npos) return bad("has no '='");
    const auto level = std::find_if(kLevels.begin(), kLevels.end(), [&](const LevelName& l) {
      return l.name == part.substr(0, equals);
    });
    if (level == kLevels.end()) return bad("is none of window, minutely, hourly and daily");
    bool& seen = given[static_cast<std::size_t>(level - kLevels.begin())];
    if (seen) return bad("is there twice");
    seen = true;
    const auto reach = parse_reach(part.substr(equals + 1));
    if (!reach) return bad("is not a number with one of the units s, m, h and d");
    policy.*level->reach = *reach;
  }
  VMSHADOW_TRY(check_policy(policy));
  return policy;
}

std::string policy_text(const RetentionPolicy& policy) {
  std::string text;
  for (const LevelName& level : kLevels) {
    text += fmt::format("{}{}={}", text.empty() ? "" : ",", level.name,
                        reach_text(policy.*level.reach));
  }
  return text;
}

WallTime thinned_up_to(const RetentionPolicy& policy, WallTime newest) {
  const std::int64_t window_ns = horizon_ns(newest.ns, policy.window);
  if (policy.minutely.count() == 0) return {window_ns};
  constexpr std::int64_t minute_ns = 60 * kSecondNs;
  std::int64_t begin_ns = 0;
  if (__builtin_mul_overflow(bucket_of(window_ns, minute_ns), minute_ns, &begin_ns)) {
    return {std::numeric_limits<std::int64_t>::min()};
  }
  return {begin_ns};
}

std::vector<Epoch> epochs_to_drop(std::span<const DatedEpoch> epochs, const RetentionPolicy& policy,
                                  const std::set<Epoch>& pins, std::optional<WallTime> now) {
  std::vector<Epoch> dropped;
  if (epochs.empty()) return dropped;
  VMSHADOW_ASSERT(std::is_sorted(epochs.begin(), epochs.end(),
                                 [](const auto& a, const auto& b) { return a.epoch < b.epoch; }));
  const std::span<const DatedEpoch> older = epochs.first(epochs.size() - 1);
  const std::int64_t newest = epochs.back().committed.ns;
  const Thinning thinning(policy, now ? std::max(newest, now->ns) : newest);
  // From the newest back: whatever comes second in a bucket goes. Times mostly rise, so most of the
  // time the bucket is that of the epoch before; only the others are looked up.
  std::optional<Thinning::Bucket> last;
  std::unordered_set<Thinning::Bucket, BucketHash> represented;
  for (std::size_t i = first_in_window(older, thinning); i-- > 0;) {
    const std::int64_t ns = older[i].committed.ns;
    if (thinning.in_window(ns)) continue;
    bool drops = thinning.is_gone(ns);
    if (const auto bucket = thinning.bucket(ns); !drops && bucket) {
      drops = bucket == last || !represented.insert(*bucket).second;
      last = bucket;
    }
    if (drops && !pins.contains(older[i].epoch)) dropped.push_back(older[i].epoch);
  }
  std::reverse(dropped.begin(), dropped.end());
  return dropped;
}

}  // namespace vmshadow::store
