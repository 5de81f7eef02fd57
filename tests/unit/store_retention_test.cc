// Which epochs a policy lets go: the levels one by one, and clocks that misbehave.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "store/retention.h"

namespace vmshadow::store {
namespace {

using std::chrono::hours;
using std::chrono::minutes;
using std::chrono::seconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::int64_t kSecond = 1'000'000'000;

/// Numbered as they come; times in seconds.
std::vector<DatedEpoch> at_seconds(const std::vector<std::int64_t>& times) {
  std::vector<DatedEpoch> epochs;
  for (const std::int64_t t : times) {
    epochs.push_back({Epoch{epochs.size()}, WallTime{t * kSecond}});
  }
  return epochs;
}

/// The times of those that stay.
std::vector<std::int64_t> kept(const std::vector<DatedEpoch>& epochs, const RetentionPolicy& policy,
                               const std::set<Epoch>& pins = {}) {
  const auto dropped = epochs_to_drop(epochs, policy, pins);
  EXPECT_TRUE(std::is_sorted(dropped.begin(), dropped.end()));
  std::vector<std::int64_t> times;
  for (const DatedEpoch& epoch : epochs) {
    if (!std::binary_search(dropped.begin(), dropped.end(), epoch.epoch)) {
      times.push_back(epoch.committed.ns / kSecond);
    }
  }
  return times;
}

constexpr std::int64_t kDay = 86'400;

TEST(RetentionTest, NothingAndOne) {
  EXPECT_THAT(epochs_to_drop({}, {}, {}), IsEmpty());
  EXPECT_THAT(epochs_to_drop(at_seconds({5}), RetentionPolicy{{}, {}, {}, {}}, {}), IsEmpty());
}

TEST(RetentionTest, WithoutAnyReachOnlyTheNewestAndPinsStay) {
  const RetentionPolicy none{{}, {}, {}, {}};
  EXPECT_THAT(kept(at_seconds({1, 2, 3, 4}), none, {Epoch{1}}), ElementsAre(2, 4));
}

TEST(RetentionTest, TheWindowKeepsAllUpToItsVeryEnd) {
  const RetentionPolicy window{minutes(10), {}, {}, {}};
  EXPECT_THAT(kept(at_seconds({399, 400, 401, 900, 1000}), window),
              ElementsAre(400, 401, 900, 1000));
}

TEST(RetentionTest, AMinuteIsThinnedOnceAllOfItIsBehindTheWindow) {
  const RetentionPolicy policy{seconds(60), hours(1), {}, {}};
  // 120…179 is a minute; it is behind the window of 60 s from 240 s on.
  EXPECT_THAT(kept(at_seconds({120, 130, 179, 239}), policy), ElementsAre(120, 130, 179, 239));
  EXPECT_THAT(kept(at_seconds({120, 130, 179, 240}), policy), ElementsAre(179, 240));
}

TEST(RetentionTest, ThinnedUpToTheMinuteInWhichTheWindowBegins) {
  const auto at = [](const RetentionPolicy& policy, std::int64_t newest_s) {
    return thinned_up_to(policy, WallTime{newest_s * kSecond}).ns / kSecond;
  };
  const RetentionPolicy minutely{seconds(60), hours(1), {}, {}};
  EXPECT_EQ(at(minutely, 239), 120);
  EXPECT_EQ(at(minutely, 240), 180);
  EXPECT_EQ(at(minutely, 1), -60);
  EXPECT_EQ(at({seconds(60), {}, hours(24), {}}, 239), 179) << "hours are not waited for";
  constexpr std::int64_t lowest = std::numeric_limits<std::int64_t>::min();
  EXPECT_EQ(thinned_up_to(minutely, WallTime{lowest}).ns, lowest);
  EXPECT_EQ(thinned_up_to({seconds(0), hours(1), {}, {}}, WallTime{lowest}).ns, lowest);
}

TEST(RetentionTest, MinutesHandOverToHoursToDaysToNothing) {
  const RetentionPolicy policy{minutes(1), hours(1), hours(24), hours(48)};
  const std::int64_t t = 100 * kDay;
  std::vector<std::int64_t> times;
  for (std::int64_t s = 0; s < 2 * 3'600; s += 20) times.push_back(t + s);
  const auto epochs = [&](std::int64_t now) {
    auto with_now = times;
    with_now.push_back(t + now);
    return at_seconds(with_now);
  };
  // One a minute for the first hour (not yet behind "minutely" as a whole), and for the second.
  EXPECT_EQ(kept(epochs(2 * 3'600 + 60), policy).size(), 60u + 1 + 1);
  EXPECT_EQ(kept(epochs(3 * 3'600 - 1), policy).size(), 60u + 1 + 1);
  EXPECT_THAT(kept(epochs(3 * 3'600), policy),
              ElementsAre(t + 3'580, t + 2 * 3'600 - 20, t + 3 * 3'600));
  EXPECT_EQ(kept(epochs(2 * kDay - 1), policy).size(), 3u);
  EXPECT_THAT(kept(epochs(2 * kDay), policy), ElementsAre(t + 2 * 3'600 - 20, t + 2 * kDay));
  EXPECT_EQ(kept(epochs(3 * kDay - 1), policy).size(), 2u);
  EXPECT_THAT(kept(epochs(3 * kDay), policy), ElementsAre(t + 3 * kDay));
}

TEST(RetentionTest, ALevelLeftOutHandsOverToTheNext) {
  const RetentionPolicy policy{minutes(1), {}, hours(24), {}};
  std::vector<std::int64_t> times;
  for (std::int64_t s = 0; s < 3'600; s += 20) times.push_back(s);
  times.push_back(3'659);
  EXPECT_EQ(kept(at_seconds(times), policy).size(), times.size());
  times.back() = 3'660;
  EXPECT_THAT(kept(at_seconds(times), policy), ElementsAre(3'580, 3'660));
}

TEST(RetentionTest, BucketsBefore1970AreLikeOthers) {
  const RetentionPolicy policy{seconds(1), hours(1), {}, {}};
  EXPECT_THAT(kept(at_seconds({-121, -120, -61, -60, -1, 0, 1}), policy),
              ElementsAre(-121, -61, -1, 0, 1));
}

TEST(RetentionTest, TheEndsOfTime) {
  constexpr std::int64_t lowest = std::numeric_limits<std::int64_t>::min();
  constexpr std::int64_t highest = std::numeric_limits<std::int64_t>::max();
  const RetentionPolicy longest{seconds::max(), seconds::max(), seconds::max(), seconds::max()};
  const std::vector<DatedEpoch> epochs = {
      {Epoch{0}, {lowest}}, {Epoch{1}, {lowest + 1}}, {Epoch{2}, {0}}, {Epoch{3}, {highest}}};
  EXPECT_THAT(epochs_to_drop(epochs, longest, {}), IsEmpty());
  EXPECT_THAT(epochs_to_drop(epochs, {}, {}), ElementsAre(Epoch{0}, Epoch{1}, Epoch{2}));
  const std::vector<DatedEpoch> falling = {
      {Epoch{0}, {highest}}, {Epoch{1}, {0}}, {Epoch{2}, {lowest}}};
  EXPECT_THAT(epochs_to_drop(falling, {}, {}), IsEmpty());
  EXPECT_THAT(epochs_to_drop(falling, longest, {}), IsEmpty());
}

TEST(RetentionTest, AClockSetBackTakesNothingOutOfTheWindow) {
  const RetentionPolicy policy{minutes(10), hours(1), {}, {}};
  const std::int64_t t = 100 * kDay;
  EXPECT_THAT(kept(at_seconds({t, 0, 1, 2, t + 5}), policy), ElementsAre(t, 0, 1, 2, t + 5));
  // Once the witness of the window is out of it they go by what their time says.
  EXPECT_THAT(kept(at_seconds({t, 0, 1, 2, t + 605}), policy), ElementsAre(t, t + 605));
}

TEST(RetentionTest, EpochsDatedAheadStayUntilTimeHasCaughtUp) {
  const RetentionPolicy policy{seconds(10), hours(1), {}, {}};
  const auto epochs = at_seconds({0, 1, 3'600, 3'601, 60, 61, 300});
  EXPECT_THAT(kept(epochs, policy), ElementsAre(1, 3'600, 3'601, 61, 300));
}

TEST(RetentionTest, OfABucketTheHighestNumberStaysWhateverTheTimes) {
  const RetentionPolicy policy{seconds(10), hours(1), {}, {}};
  EXPECT_THAT(kept(at_seconds({30, 20, 10, 10, 300}), policy), ElementsAre(10, 300));
  EXPECT_THAT(epochs_to_drop(at_seconds({10, 10, 300}), policy, {}), ElementsAre(Epoch{0}));
}

TEST(RetentionTest, APinStaysBesideItsBucketsNewest) {
  const RetentionPolicy policy{seconds(10), hours(1), {}, {}};
  EXPECT_THAT(kept(at_seconds({1, 2, 3, 300}), policy, {Epoch{0}}), ElementsAre(1, 3, 300));
  EXPECT_THAT(kept(at_seconds({1, 2, 3, 9 * kDay}), policy, {Epoch{0}, Epoch{77}}),
              ElementsAre(1, 9 * kDay));
}

TEST(RetentionTest, AHundredThousandEpochsAtOnce) {
  std::vector<std::int64_t> times;
  for (std::int64_t i = 0; i < 100'000; ++i) times.push_back(i);
  // 600 s and the newest; 17 minutes that are behind it; hours and days follow.
  const auto left = kept(at_seconds(times), {});
  EXPECT_GE(left.size(), 601u);
  EXPECT_LE(left.size(), 601u + 59 + 2 * 60 + 25 + 3);
}

TEST(RetentionPolicyTest, ReadsWhatItWrites) {
  EXPECT_EQ(policy_text({}), "window=10m,minutely=1h,hourly=1d,daily=30d");
  EXPECT_EQ(policy_text({seconds(61), minutes(90), {}, {}}),
            "window=61s,minutely=90m,hourly=0,daily=0");
  EXPECT_EQ(*parse_policy(policy_text({})), RetentionPolicy{});
  EXPECT_EQ(*parse_policy(""), RetentionPolicy{});
  EXPECT_EQ(*parse_policy("daily=0,hourly=0s"),
            (RetentionPolicy{minutes(10), hours(1), seconds(0), seconds(0)}));
  EXPECT_EQ(parse_policy("minutely=2h", {seconds(1), {}, {}, {}})->minutely, hours(2));
}

TEST(RetentionPolicyTest, NamesThePartThatCannotBeRead) {
  const auto refused = [](const std::string& text) {
    const auto policy = parse_policy(text);
    if (policy) return std::string("taken");
    EXPECT_EQ(policy.error().code, Errc::invalid_argument);
    return policy.error().message;
  };
  EXPECT_THAT(refused("window=10m,weekly=1d"), HasSubstr("'weekly=1d' is none of"));
  EXPECT_THAT(refused("window"), HasSubstr("'window' has no '='"));
  EXPECT_THAT(refused("window=1m,,daily=1d"), HasSubstr("'' has no '='"));
  EXPECT_THAT(refused("window=1m,"), HasSubstr("ends with a comma"));
  EXPECT_THAT(refused("window=1m,window=1m"), HasSubstr("'window=1m' is there twice"));
  for (const char* reach : {"", "10", "m", "-1m", "1.5h", "1w", "10 m", "10ms", "+1m",
                            "99999999999999999999s", "9223372036854775807d"}) {
    EXPECT_THAT(refused(std::string("daily=") + reach), HasSubstr("is not a number with one of"))
        << reach;
  }
  EXPECT_THAT(refused("minutely=1m"),
              HasSubstr("minutely=1m reaches less far than its window=10m"));
  EXPECT_THAT(refused("minutely=0,hourly=5m"), HasSubstr("hourly=5m reaches less far"));
  EXPECT_THAT(check_policy({seconds(-1), {}, {}, {}}).error().message, HasSubstr("window reaches"));
}

}  // namespace
}  // namespace vmshadow::store
