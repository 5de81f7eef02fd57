#include "nbd/negotiation.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "base/assert.h"
#include "nbd/protocol.h"

namespace vmshadow::nbd {
namespace {

/// An export's name, a context's, and what belongs to them: more is no honest option.
constexpr std::uint32_t kOptionBytesMax = 4 * kNameBytesMax;
/// What is skipped of a longer one before we hang up.
constexpr std::uint32_t kSkippedBytesMax = std::uint32_t{1} << 20;
constexpr int kOptionsMax = 1024;
constexpr std::size_t kReservedBytes = 124;
constexpr std::uint32_t kPreferredBlockBytes = 65536;

std::uint16_t flags_of(const BlockDevice& device, bool structured) {
  const int common = kHasFlags | kSendFlush | kCanMultiConn | (structured ? kSendDf : 0);
  const int flags =
      common | (device.read_only() ? kReadOnly : kSendFua | kSendTrim | kSendWriteZeroes);
  return static_cast<std::uint16_t>(flags);
}

/// Takes an option's data apart, front to back.
class OptionData {
 public:
  explicit OptionData(ByteSpan bytes) : bytes_(bytes) {}

  template <class Endian>
  [[nodiscard]] std::optional<decltype(Endian{}.get())> take() {
    if (bytes_.size() < sizeof(Endian)) return std::nullopt;
    const auto value = load<Endian>(bytes_.data());
    bytes_ = bytes_.subspan(sizeof(Endian));
    return value;
  }
  /// A string behind its length.
  [[nodiscard]] std::optional<std::string_view> take_string() {
    const auto length = take<be32>();
    if (!length || *length > kNameBytesMax || *length > bytes_.size()) return std::nullopt;
    const std::string_view text(reinterpret_cast<const char*>(bytes_.data()), *length);
    bytes_ = bytes_.subspan(*length);
    return text;
  }
  [[nodiscard]] std::size_t left() const { return bytes_.size(); }

 private:
  ByteSpan bytes_;
};

void append(std::vector<std::byte>& out, ByteSpan bytes) {
  out.insert(out.end(), bytes.begin(), bytes.end());
}
void append(std::vector<std::byte>& out, std::string_view text) {
  append(out, std::as_bytes(std::span(text)));
}

class Negotiation {
 public:
  Negotiation(ByteStream& stream, std::span<const Export> exports)
      : stream_(stream), exports_(exports) {}
  [[nodiscard]] Result<std::optional<Agreement>> run();

 private:
  enum class Next { option, leave, transmission };

  [[nodiscard]] Result<Next> take_option();
  [[nodiscard]] Result<Next> choose_by_name(ByteSpan data);
  [[nodiscard]] Result<Next> inform(Option option, ByteSpan data);
  [[nodiscard]] Status list(ByteSpan data);
  [[nodiscard]] Status structured_replies(ByteSpan data);
  [[nodiscard]] Status contexts(Option option, ByteSpan data);
  [[nodiscard]] Status reply(Option option, OptionReply type, ByteSpan data = {});
  [[nodiscard]] Status refuse(Option option, OptionReply type, std::string_view why);
  [[nodiscard]] const Export* find(std::string_view name) const;

  ByteStream& stream_;
  const std::span<const Export> exports_;
  bool no_zeroes_ = false;
  bool structured_ = false;
  const Export* allocation_of_ = nullptr;  // the export whose block status was asked for
  const Export* chosen_ = nullptr;
};

Result<std::optional<Agreement>> Negotiation::run() {
  VMSHADOW_TRY(stream_.write(bytes_of(Greeting{})));
  VMSHADOW_ASSIGN(const be32 flags, read_struct<be32>(stream_));
  if ((flags.get() & ~std::uint32_t{kFixedNewstyle | kNoZeroes}) != 0) {
    return fail(Errc::protocol,
                fmt::format("unknown handshake flags {:#x}: no NBD client of today", flags.get()));
  }
  if ((flags.get() & kFixedNewstyle) == 0) {
    return fail(Errc::protocol, "the client does not know the fixed newstyle handshake");
  }
  no_zeroes_ = (flags.get() & kNoZeroes) != 0;
  for (int i = 0; i < kOptionsMax; ++i) {
    VMSHADOW_ASSIGN(const Next next, take_option());
    if (next == Next::leave) return std::nullopt;
    if (next == Next::transmission) {
      return Agreement{chosen_->device, structured_, structured_ && allocation_of_ == chosen_};
    }
  }
  return fail(Errc::protocol, fmt::format("{} options and no export chosen", kOptionsMax));
}

Result<Negotiation::Next> Negotiation::take_option() {
  VMSHADOW_ASSIGN(const OptionHead head, read_struct<OptionHead>(stream_));
  if (head.magic.get() != kOptionMagic) {
    return fail(Errc::protocol, "an option does not begin with its magic number");
  }
  const auto option = static_cast<Option>(head.option.get());
  if (head.bytes.get() > kSkippedBytesMax) {
    return fail(Errc::protocol,
                fmt::format("an option of {} bytes, over {}", head.bytes.get(), kSkippedBytesMax));
  }
  std::vector<std::byte> data(head.bytes.get());
  VMSHADOW_TRY(stream_.read(data));
  if (data.size() > kOptionBytesMax) {
    VMSHADOW_TRY(refuse(option, OptionReply::too_big, "the option is too long"));
    return Next::option;
  }
  switch (option) {
    case Option::export_name:
      return choose_by_name(data);
    case Option::abort:
      // The client may have gone without waiting for this.
      static_cast<void>(reply(option, OptionReply::ack));
      return Next::leave;
    case Option::info:
    case Option::go:
      return inform(option, data);
    case Option::list:
      VMSHADOW_TRY(list(data));
      break;
    case Option::structured_reply:
      VMSHADOW_TRY(structured_replies(data));
      break;
    case Option::list_meta_context:
    case Option::set_meta_context:
      VMSHADOW_TRY(contexts(option, data));
      break;
    case Option::starttls:
    default:
      VMSHADOW_TRY(refuse(option, OptionReply::unsupported, "not supported here"));
  }
  return Next::option;
}

// The old way, which has no answer for what does not exist.
Result<Negotiation::Next> Negotiation::choose_by_name(ByteSpan data) {
  const std::string_view name(reinterpret_cast<const char*>(data.data()), data.size());
  chosen_ = find(name);
  if (chosen_ == nullptr) {
    return fail(Errc::not_found, "the client asked for an export that does not exist");
  }
  std::vector<std::byte> answer;
  append(answer, bytes_of(be64(chosen_->device->bytes())));
  append(answer, bytes_of(be16(flags_of(*chosen_->device, structured_))));
  if (!no_zeroes_) answer.resize(answer.size() + kReservedBytes);
  VMSHADOW_TRY(stream_.write(answer));
  return Next::transmission;
}

Result<Negotiation::Next> Negotiation::inform(Option option, ByteSpan data) {
  OptionData rest(data);
  const auto name = rest.take_string();
  const auto requests = rest.take<be16>();
  if (!name || !requests || rest.left() != *requests * sizeof(be16)) {
    VMSHADOW_TRY(refuse(option, OptionReply::invalid, "the option's data is malformed"));
    return Next::option;
  }
  const Export* found = find(*name);
  if (found == nullptr) {
    VMSHADOW_TRY(refuse(option, OptionReply::unknown, "there is no export of this name"));
    return Next::option;
  }
  InfoExport size;
  size.bytes = found->device->bytes();
  size.flags = flags_of(*found->device, structured_);
  VMSHADOW_TRY(reply(option, OptionReply::info, bytes_of(size)));
  while (const auto wanted = rest.take<be16>()) {
    std::vector<std::byte> info;
    if (*wanted == kInfoBlockSize) {
      InfoBlockSize sizes;
      sizes.smallest = found->device->block_bytes();
      sizes.preferred = kPreferredBlockBytes;
      sizes.largest = kPayloadBytesMax;
      append(info, bytes_of(sizes));
    } else if (*wanted == kInfoName || *wanted == kInfoDescription) {
      append(info, bytes_of(be16(*wanted)));
      append(info, *wanted == kInfoName ? found->name : found->description);
    } else {
      continue;  // what is not known is passed over
    }
    VMSHADOW_TRY(reply(option, OptionReply::info, info));
  }
  VMSHADOW_TRY(reply(option, OptionReply::ack));
  if (option == Option::info) return Next::option;
  chosen_ = found;
  return Next::transmission;
}

Status Negotiation::list(ByteSpan data) {
  if (!data.empty()) return refuse(Option::list, OptionReply::invalid, "list takes no data");
  for (const Export& exported : exports_) {
    std::vector<std::byte> entry;
    append(entry, bytes_of(be32(static_cast<std::uint32_t>(exported.name.size()))));
    append(entry, exported.name);
    append(entry, exported.description);
    VMSHADOW_TRY(reply(Option::list, OptionReply::server, entry));
  }
  return reply(Option::list, OptionReply::ack);
}

Status Negotiation::structured_replies(ByteSpan data) {
  if (!data.empty()) {
    return refuse(Option::structured_reply, OptionReply::invalid, "the option takes no data");
  }
  structured_ = true;
  return reply(Option::structured_reply, OptionReply::ack);
}

Status Negotiation::contexts(Option option, ByteSpan data) {
  const bool set = option == Option::set_meta_context;
  if (set) allocation_of_ = nullptr;  // whatever comes of it, what was chosen before is no more
  if (!structured_) {
    return refuse(option, OptionReply::invalid, "structured replies must be agreed on before");
  }
  OptionData rest(data);
  const auto name = rest.take_string();
  const auto queries = rest.take<be32>();
  if (!name || !queries) return refuse(option, OptionReply::invalid, "malformed data");
  const Export* found = find(*name);
  if (found == nullptr) return refuse(option, OptionReply::unknown, "there is no such export");
  bool matches = !set && *queries == 0;  // all that there are
  for (std::uint32_t i = 0; i < *queries; ++i) {
    const auto query = rest.take_string();
    if (!query) return refuse(option, OptionReply::invalid, "malformed data");
    matches |= *query == kAllocationContext || (!set && *query == "base:");
  }
  if (rest.left() != 0) return refuse(option, OptionReply::invalid, "malformed data");
  if (matches) {
    std::vector<std::byte> context;
    append(context, bytes_of(be32(set ? kAllocationContextId : 0)));
    append(context, kAllocationContext);
    VMSHADOW_TRY(reply(option, OptionReply::meta_context, context));
    if (set) allocation_of_ = found;
  }
  return reply(option, OptionReply::ack);
}

Status Negotiation::reply(Option option, OptionReply type, ByteSpan data) {
  OptionReplyHead head;
  head.option = static_cast<std::uint32_t>(option);
  head.type = static_cast<std::uint32_t>(type);
  head.bytes = static_cast<std::uint32_t>(data.size());
  std::vector<std::byte> message;
  append(message, bytes_of(head));
  append(message, data);
  return stream_.write(message);
}

Status Negotiation::refuse(Option option, OptionReply type, std::string_view why) {
  return reply(option, type, std::as_bytes(std::span(why)));
}

const Export* Negotiation::find(std::string_view name) const {
  if (name.empty() && !exports_.empty()) return &exports_.front();
  const auto found = std::find_if(exports_.begin(), exports_.end(),
                                  [&](const Export& exported) { return exported.name == name; });
  return found == exports_.end() ? nullptr : &*found;
}

}  // namespace

Result<std::optional<Agreement>> negotiate(ByteStream& stream, std::span<const Export> exports) {
  return Negotiation(stream, exports).run();
}

}  // namespace vmshadow::nbd
