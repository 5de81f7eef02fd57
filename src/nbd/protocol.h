// The numbers and structures of the NBD protocol: fixed newstyle handshake, simple and structured
// replies, base:allocation. Source: the protocol's own description, doc/proto.md of
// github.com/NetworkBlockDevice/nbd. All integers are big-endian.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/endian.h"

namespace vmshadow::nbd {

// ---- handshake

inline constexpr std::uint64_t kMagic = 0x4e42444d41474943;        // "NBDMAGIC"
inline constexpr std::uint64_t kOptionMagic = 0x49484156454f5054;  // "IHAVEOPT"
inline constexpr std::uint64_t kOptionReplyMagic = 0x0003e889045565a9;

/// Of the server's and of the client's handshake flags: the same bits.
inline constexpr std::uint16_t kFixedNewstyle = 1 << 0;
inline constexpr std::uint16_t kNoZeroes = 1 << 1;

struct Greeting {
  be64 magic{kMagic};
  be64 option_magic{kOptionMagic};
  be16 flags{kFixedNewstyle | kNoZeroes};
};
static_assert(sizeof(Greeting) == 18);

enum class Option : std::uint32_t {
  export_name = 1,
  abort = 2,
  list = 3,
  starttls = 5,
  info = 6,
  go = 7,
  structured_reply = 8,
  list_meta_context = 9,
  set_meta_context = 10,
};

struct OptionHead {
  be64 magic{kOptionMagic};
  be32 option;
  be32 bytes;
};
static_assert(sizeof(OptionHead) == 16);

enum class OptionReply : std::uint32_t {
  ack = 1,
  server = 2,
  info = 3,
  meta_context = 4,
  unsupported = 0x80000001,
  invalid = 0x80000003,
  unknown = 0x80000006,
  too_big = 0x80000009,
};

struct OptionReplyHead {
  be64 magic{kOptionReplyMagic};
  be32 option;
  be32 type;
  be32 bytes;
};
static_assert(sizeof(OptionReplyHead) == 20);

inline constexpr std::uint16_t kInfoExport = 0;
inline constexpr std::uint16_t kInfoName = 1;
inline constexpr std::uint16_t kInfoDescription = 2;
inline constexpr std::uint16_t kInfoBlockSize = 3;

struct InfoExport {
  be16 type{kInfoExport};
  be64 bytes;
  be16 flags;
};
static_assert(sizeof(InfoExport) == 12);

struct InfoBlockSize {
  be16 type{kInfoBlockSize};
  be32 smallest;
  be32 preferred;
  be32 largest;
};
static_assert(sizeof(InfoBlockSize) == 14);

/// The only metadata context there is here.
inline constexpr std::string_view kAllocationContext = "base:allocation";
inline constexpr std::uint32_t kAllocationContextId = 1;

// ---- transmission

inline constexpr std::uint16_t kHasFlags = 1 << 0;
inline constexpr std::uint16_t kReadOnly = 1 << 1;
inline constexpr std::uint16_t kSendFlush = 1 << 2;
inline constexpr std::uint16_t kSendFua = 1 << 3;
inline constexpr std::uint16_t kSendTrim = 1 << 5;
inline constexpr std::uint16_t kSendWriteZeroes = 1 << 6;
inline constexpr std::uint16_t kSendDf = 1 << 7;
inline constexpr std::uint16_t kCanMultiConn = 1 << 8;

enum class Command : std::uint16_t {
  read = 0,
  write = 1,
  disconnect = 2,
  flush = 3,
  trim = 4,
  write_zeroes = 6,
  block_status = 7,
};

inline constexpr std::uint16_t kCommandFua = 1 << 0;
inline constexpr std::uint16_t kCommandNoHole = 1 << 1;
inline constexpr std::uint16_t kCommandDf = 1 << 2;
inline constexpr std::uint16_t kCommandReqOne = 1 << 3;

inline constexpr std::uint32_t kRequestMagic = 0x25609513;
struct Request {
  be32 magic{kRequestMagic};
  be16 flags;
  be16 command;
  be64 cookie;  ///< the client's, returned as it is
  be64 offset;
  be32 bytes;
};
static_assert(sizeof(Request) == 28);

inline constexpr std::uint32_t kSimpleReplyMagic = 0x67446698;
struct SimpleReply {
  be32 magic{kSimpleReplyMagic};
  be32 error;
  be64 cookie;
};
static_assert(sizeof(SimpleReply) == 16);

enum class Chunk : std::uint16_t {
  none = 0,
  offset_data = 1,
  block_status = 5,
  error = 0x8001,
};
inline constexpr std::uint16_t kChunkDone = 1 << 0;

inline constexpr std::uint32_t kStructuredReplyMagic = 0x668e33ef;
struct StructuredReply {
  be32 magic{kStructuredReplyMagic};
  be16 flags;
  be16 type;
  be64 cookie;
  be32 bytes;
};
static_assert(sizeof(StructuredReply) == 20);

struct StatusDescriptor {
  be32 bytes;
  be32 flags;
};
static_assert(sizeof(StatusDescriptor) == 8);
inline constexpr std::uint32_t kStateHole = 1 << 0;
inline constexpr std::uint32_t kStateZero = 1 << 1;

/// The protocol's own errors; the values are Linux's errno.
enum class WireError : std::uint32_t {
  none = 0,
  permission = 1,
  io = 5,
  invalid = 22,
  no_space = 28,
  overflow = 75,
  unsupported = 95,
};

/// The longest payload of a request or a reply. What QEMU and libnbd keep to as well.
inline constexpr std::uint32_t kPayloadBytesMax = std::uint32_t{32} << 20;
/// The longest name of an export or a context, by the protocol.
inline constexpr std::uint32_t kNameBytesMax = 4096;

}  // namespace vmshadow::nbd
