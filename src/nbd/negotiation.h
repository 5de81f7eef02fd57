// The handshake: the client looks around, asks for what it can use, and chooses an export.
//
//   server ── greeting ──► client
//          ◄─ flags ──
//          ◄─ option ── ─► replies, ack or error           (any number, in any order)
//          ◄─ go or export_name ── ─► the export's size and flags; transmission begins
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>

#include <vmshadow/block_device.h>
#include <vmshadow/result.h>

#include "nbd/byte_stream.h"

namespace vmshadow::nbd {

/// A disk under a name. The first one also serves clients that ask for none.
struct Export {
  std::string name;
  std::string description;
  std::shared_ptr<BlockDevice> device;
};

struct Agreement {
  std::shared_ptr<BlockDevice> device;
  bool structured = false;  ///< structured replies
  bool allocation = false;  ///< block status of base:allocation
};

/// nullopt: the client left in order. Errc::protocol: it does not speak NBD, or against its rules.
[[nodiscard]] Result<std::optional<Agreement>> negotiate(ByteStream& stream,
                                                         std::span<const Export> exports);

}  // namespace vmshadow::nbd
