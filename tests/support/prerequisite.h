// A test that lacks what it needs says so and is skipped; with REQUIRE_E2E=1 (continuous
// integration) the lack is a failure, so that a suite cannot fall silent. What no package can bring
// (Errc::unsupported: the machine has no KVM, say) skips there too.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <string_view>

#include <vmshadow/result.h>

namespace vmshadow::test {

[[nodiscard]] inline bool prerequisites_are_required() {
  const char* value = std::getenv("REQUIRE_E2E");
  return value != nullptr && std::string_view(value) == "1";
}

}  // namespace vmshadow::test

/// Ends the test unless `result` (a Status) holds.
#define VMSHADOW_REQUIRE(result)                                               \
  do {                                                                         \
    if (auto vmshadow_prerequisite = (result); !vmshadow_prerequisite) {       \
      if (::vmshadow::test::prerequisites_are_required() &&                    \
          vmshadow_prerequisite.error().code != ::vmshadow::Errc::unsupported) \
        FAIL() << vmshadow_prerequisite.error().message;                       \
      GTEST_SKIP() << vmshadow_prerequisite.error().message;                   \
    }                                                                          \
  } while (false)
