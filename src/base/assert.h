// Assertions for bugs, in every build: a replication engine that lost an invariant must not go on
// writing. Never use them on anything that came from a peer, a disk or an operator.
#pragma once

namespace vmshadow {
/// Prints the expression and its place on stderr and aborts.
[[noreturn]] void assertion_failed(const char* expression, const char* file, int line);
}  // namespace vmshadow

#define VMSHADOW_ASSERT(expression)    \
  ((expression) ? static_cast<void>(0) \
                : ::vmshadow::assertion_failed(#expression, __FILE__, __LINE__))
