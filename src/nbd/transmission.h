// After the handshake: requests in, replies out, one at a time and in order.
#pragma once

#include <vmshadow/result.h>

#include "nbd/byte_stream.h"
#include "nbd/negotiation.h"

namespace vmshadow::nbd {

/// Serves until the client disconnects in order. Errc::closed: it went without a word; ::protocol:
/// what it sent cannot be followed any further. An error of the device is the client's to see, and
/// ends nothing.
[[nodiscard]] Status transmit(ByteStream& stream, const Agreement& agreement);

}  // namespace vmshadow::nbd
