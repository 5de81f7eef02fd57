// The laws of thinning, for any epochs and policies.

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <map>

#include "store/retention.h"

namespace vmshadow::store {
namespace {

constexpr std::int64_t kSecond = 1'000'000'000;
using Epochs = std::vector<DatedEpoch>;

RetentionPolicy any_policy() {
  RetentionPolicy policy{};
  std::int64_t reach = 0;
  const auto level = [&](std::int64_t step_s) {
    if (*rc::gen::weightedElement<bool>({{1, true}, {3, false}})) return std::chrono::seconds(0);
    reach += *rc::gen::inRange<std::int64_t>(0, 4) * step_s + *rc::gen::inRange<std::int64_t>(0, 9);
    return std::chrono::seconds(reach);
  };
  policy.window = level(30);
  policy.minutely = level(1'800);
  policy.hourly = level(40'000);
  policy.daily = level(86'400);
  RC_ASSERT(check_policy(policy).has_value());
  return policy;
}

std::int64_t any_step_ns() {
  const auto unit = *rc::gen::weightedElement<std::int64_t>(
      {{2, 0}, {10, kSecond}, {6, 20 * kSecond}, {3, 900 * kSecond}, {2, 30'000 * kSecond}});
  return *rc::gen::inRange<std::int64_t>(0, 6) * unit;
}

/// Times that rise, around 1970.
Epochs any_rising() {
  Epochs epochs;
  std::int64_t now = *rc::gen::inRange<std::int64_t>(-200'000, 10'000) * kSecond;
  std::uint64_t number = *rc::gen::inRange<std::uint64_t>(0, 3);
  for (int n = *rc::gen::inRange(0, 120); n > 0; --n) {
    epochs.push_back({Epoch{number}, WallTime{now}});
    number += *rc::gen::inRange<std::uint64_t>(1, 3);
    now += any_step_ns();
  }
  return epochs;
}

/// As above, with a clock that is set now and then, or that says just anything.
Epochs any_epochs() {
  Epochs epochs = any_rising();
  std::int64_t shift = 0;
  for (DatedEpoch& epoch : epochs) {
    switch (*rc::gen::weightedElement<int>({{12, 0}, {2, 1}, {1, 2}})) {
      case 1:
        shift = any_step_ns() - any_step_ns();
        break;
      case 2:
        epoch.committed.ns = *rc::gen::arbitrary<std::int64_t>();
        continue;
      default:
        break;
    }
    epoch.committed.ns += shift;
  }
  return epochs;
}

std::set<Epoch> any_pins(const Epochs& epochs) {
  std::set<Epoch> pins;
  for (const DatedEpoch& epoch : epochs) {
    if (*rc::gen::weightedElement<bool>({{9, false}, {1, true}})) pins.insert(epoch.epoch);
  }
  return pins;
}

Epochs thinned(const Epochs& epochs, const RetentionPolicy& policy, const std::set<Epoch>& pins) {
  const auto dropped = epochs_to_drop(epochs, policy, pins);
  Epochs left;
  for (const DatedEpoch& epoch : epochs) {
    if (!std::binary_search(dropped.begin(), dropped.end(), epoch.epoch)) left.push_back(epoch);
  }
  RC_ASSERT(left.size() + dropped.size() == epochs.size());
  return left;
}

std::vector<Epoch> numbers(const Epochs& epochs) {
  std::vector<Epoch> numbers;
  for (const DatedEpoch& epoch : epochs) numbers.push_back(epoch.epoch);
  return numbers;
}

std::int64_t bucket_of(std::int64_t ns, std::int64_t bucket_s) {
  std::int64_t bucket = ns / (bucket_s * kSecond);
  return bucket * bucket_s * kSecond > ns ? bucket - 1 : bucket;
}

RC_GTEST_PROP(RetentionProperty, TheNewestPinsAndTheWindowStayWhateverTheClock, ()) {
  const Epochs epochs = any_epochs();
  const RetentionPolicy policy = any_policy();
  const auto pins = any_pins(epochs);
  const auto dropped = epochs_to_drop(epochs, policy, pins);
  RC_ASSERT(std::is_sorted(dropped.begin(), dropped.end()));
  if (epochs.empty()) return;
  const auto newest = epochs.back();
  std::int64_t window = 0;
  const bool all =
      __builtin_sub_overflow(newest.committed.ns, policy.window.count() * kSecond, &window);
  bool in_window = false;
  for (const DatedEpoch& epoch : epochs) {
    const bool witness =
        epoch.committed <= newest.committed && (all || epoch.committed.ns >= window);
    in_window = in_window || witness;
    if (std::binary_search(dropped.begin(), dropped.end(), epoch.epoch)) {
      RC_ASSERT(epoch.epoch != newest.epoch);
      RC_ASSERT(!pins.contains(epoch.epoch));
      RC_ASSERT(!in_window);
      RC_ASSERT(epoch.committed <= newest.committed);
    }
  }
}

RC_GTEST_PROP(RetentionProperty, OnceIsEnough, ()) {
  const RetentionPolicy policy = any_policy();
  const Epochs epochs = any_epochs();
  const auto pins = any_pins(epochs);
  const Epochs once = thinned(epochs, policy, pins);
  RC_ASSERT(epochs_to_drop(once, policy, pins).empty());
}

/// What goes has something newer in its minute, hour or day that stays, or is behind every level.
RC_GTEST_PROP(RetentionProperty, WhatGoesIsRepresentedOrTooOld, ()) {
  const RetentionPolicy policy = any_policy();
  const Epochs epochs = any_rising();
  const auto pins = any_pins(epochs);
  const Epochs left = thinned(epochs, policy, pins);
  if (epochs.empty()) return;
  const std::int64_t now = epochs.back().committed.ns;
  const auto reach_ns = [&](std::chrono::seconds reach) { return reach.count() * kSecond; };
  const auto longest =
      std::max({policy.window, policy.minutely, policy.hourly, policy.daily}).count() * kSecond;
  for (const Epoch gone : epochs_to_drop(epochs, policy, pins)) {
    const auto it = std::find_if(epochs.begin(), epochs.end(),
                                 [&](const DatedEpoch& e) { return e.epoch == gone; });
    const std::int64_t age = now - it->committed.ns;
    RC_ASSERT(age >= reach_ns(policy.window));
    if (age > longest) continue;
    // The coarsest bucket that the age allows: finer ones are inside it.
    const std::int64_t bucket_s = policy.hourly.count() != 0 && age > reach_ns(policy.hourly)
                                      ? 86'400
                                  : policy.minutely.count() != 0 && age > reach_ns(policy.minutely)
                                      ? (policy.hourly.count() != 0 ? 3'600 : 86'400)
                                      : (policy.minutely.count() != 0 ? 60
                                         : policy.hourly.count() != 0 ? 3'600
                                                                      : 86'400);
    RC_ASSERT(std::any_of(left.begin(), left.end(), [&](const DatedEpoch& e) {
      return e.epoch > gone &&
             bucket_of(e.committed.ns, bucket_s) == bucket_of(it->committed.ns, bucket_s);
    }));
  }
}

/// Rising times: thinning whenever an epoch comes leaves what thinning at the very end leaves, and
/// nobody sees a minute's, hour's or day's representative replaced.
RC_GTEST_PROP(RetentionProperty, ManyPassesLeaveWhatOneLeaves, ()) {
  const RetentionPolicy policy = any_policy();
  const Epochs epochs = any_rising();
  const auto pins = any_pins(epochs);
  Epochs stepwise;
  for (const DatedEpoch& epoch : epochs) {
    stepwise.push_back(epoch);
    if (*rc::gen::arbitrary<bool>()) stepwise = thinned(stepwise, policy, pins);
  }
  RC_ASSERT(numbers(thinned(stepwise, policy, pins)) == numbers(thinned(epochs, policy, pins)));
}

/// Behind thinned_up_to() there is one a minute at most, before it nothing has gone.
RC_GTEST_PROP(RetentionProperty, ThinnedUpToParts, ()) {
  const RetentionPolicy policy = any_policy();
  const Epochs epochs = any_rising();
  if (epochs.empty()) return;
  const WallTime thinned_to = thinned_up_to(policy, epochs.back().committed);
  std::map<std::int64_t, int> of_minute;
  std::size_t recent = 0;
  for (const DatedEpoch& e : thinned(epochs, policy, {})) {
    if (e.committed >= thinned_to) {
      ++recent;
    } else if (policy.minutely.count() > 0 && e.epoch != epochs.back().epoch) {
      RC_ASSERT(++of_minute[bucket_of(e.committed.ns, 60)] == 1);
    }
  }
  RC_ASSERT(recent == static_cast<std::size_t>(std::count_if(
                          epochs.begin(), epochs.end(),
                          [&](const DatedEpoch& e) { return e.committed >= thinned_to; })));
}

/// Behind the window there is one of each bucket that is its newest, so few are left.
RC_GTEST_PROP(RetentionProperty, WhatStaysBehindTheWindowIsTheNewestOfItsMinute, ()) {
  RetentionPolicy policy = any_policy();
  const Epochs epochs = any_rising();
  const Epochs left = thinned(epochs, policy, {});
  if (epochs.empty()) return;
  const std::int64_t now = epochs.back().committed.ns;
  const bool thins = policy.minutely.count() + policy.hourly.count() + policy.daily.count() > 0;
  std::map<std::int64_t, Epoch> newest;
  for (const DatedEpoch& e : epochs) newest[bucket_of(e.committed.ns, 60)] = e.epoch;
  for (const DatedEpoch& e : left) {
    const std::int64_t minute = bucket_of(e.committed.ns, 60);
    if (policy.minutely.count() > 0 &&
        (minute + 1) * 60 * kSecond <= now - policy.window.count() * kSecond) {
      RC_ASSERT(newest.at(minute) == e.epoch);
    }
    if (!thins && e.epoch != epochs.back().epoch) {
      RC_ASSERT(now - e.committed.ns <= policy.window.count() * kSecond);
    }
  }
}

RC_GTEST_PROP(RetentionProperty, PolicyTextReadsBack, ()) {
  const RetentionPolicy policy = any_policy();
  const auto read = parse_policy(policy_text(policy));
  RC_ASSERT(read.has_value());
  RC_ASSERT(*read == policy);
}

}  // namespace
}  // namespace vmshadow::store
