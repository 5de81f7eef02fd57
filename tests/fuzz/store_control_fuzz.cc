// What arrives on the store's control socket, as a request and as an answer: whatever the bytes, it
// is refused or means the same after another round.
#include <cstddef>
#include <cstdint>
#include <string>

#include "app/store_control.h"
#include "base/assert.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmshadow;
  const std::string line(reinterpret_cast<const char*>(data), size);
  const auto request = app::parse_control_request(line);
  if (request) {
    const auto again = app::parse_control_request(app::serialize(*request));
    VMSHADOW_ASSERT(again && *again == *request);
  } else {
    VMSHADOW_ASSERT(request.error().code == Errc::invalid_argument ||
                    request.error().code == Errc::unsupported);
    VMSHADOW_ASSERT(!request.error().message.empty());
  }
  const auto response = app::parse_control_response(line);
  if (response) {
    const auto again = app::parse_control_response(app::serialize(response));
    VMSHADOW_ASSERT(again.has_value());
  }
  return 0;
}
