#include "base/assert.h"

#include <cstdio>
#include <cstdlib>

namespace vmshadow {

void assertion_failed(const char* expression, const char* file, int line) {
  std::fprintf(stderr, "vmshadow: bug: assertion '%s' failed at %s:%d\n", expression, file, line);
  std::abort();
}

}  // namespace vmshadow
