#include "capture/migration_stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "base/assert.h"
#include "base/endian.h"
#include "base/migration_format.h"

namespace vmshadow::capture {
namespace {

using namespace migration_format;  // NOLINT(google-build-using-namespace): constants alone

// Flags of features we switch off before we start; to see one means somebody switched it on.
struct RefusedFlag {
  std::uint64_t bit;
  std::string_view feature;
};
constexpr RefusedFlag kRefusedFlags[] = {
    {0x01, "full (obsolete)"}, {0x40, "xbzrle"},   {0x80, "RDMA hook"},
    {0x100, "compress"},       {0x200, "multifd"}, {0x400, "multifd flush"},
};

constexpr std::size_t kMachineNameBytesMax = 1024;
constexpr std::uint32_t kCapabilitiesMax = 64;

}  // namespace

/// Reads items off the front of a span; taking too much leaves it where it was.
class MigrationStream::Cursor {
 public:
  explicit Cursor(ByteSpan bytes) : bytes_(bytes) {}

  [[nodiscard]] bool has(std::size_t count) const { return bytes_.size() - at_ >= count; }
  [[nodiscard]] const std::byte* here() const { return bytes_.data() + at_; }
  [[nodiscard]] std::size_t position() const { return at_; }
  [[nodiscard]] std::size_t left() const { return bytes_.size() - at_; }
  void seek(std::size_t position) { at_ = position; }
  void skip(std::size_t count) { at_ += count; }

  bool u8(std::uint8_t& value) {
    if (!has(1)) return false;
    value = static_cast<std::uint8_t>(bytes_[at_++]);
    return true;
  }
  template <class Endian, class Integer>
  bool integer(Integer& value) {
    if (!has(sizeof(Endian))) return false;
    value = load<Endian>(here());
    at_ += sizeof(Endian);
    return true;
  }
  bool text(std::size_t count, std::string_view& value) {
    if (!has(count)) return false;
    value = {reinterpret_cast<const char*>(here()), count};
    at_ += count;
    return true;
  }
  /// u8 length, then the characters.
  bool short_text(std::string_view& value) {
    const std::size_t start = at_;
    std::uint8_t count = 0;
    if (u8(count) && text(count, value)) return true;
    at_ = start;
    return false;
  }

 private:
  ByteSpan bytes_;
  std::size_t at_ = 0;
};

Result<MigrationStream::Step> MigrationStream::parse(ByteSpan bytes, std::vector<PageRef>& pages) {
  VMSHADOW_ASSERT(state_ != State::failed);
  Cursor cursor(bytes);
  for (;;) {
    const std::size_t start = cursor.position();
    const State before = state_;
    auto event = parse_item(cursor, pages);
    if (!event) {
      state_ = State::failed;
      return fail(std::move(event).error().with_context(
          fmt::format("QEMU's migration stream at byte {}", offset_ + start)));
    }
    if (*event != Event::need_more) {
      offset_ += cursor.position();
      return Step{cursor.position(), *event};
    }
    // need_more without progress, in the same state: the item is incomplete.
    if (cursor.position() == start && state_ == before) {
      offset_ += start;
      return Step{start, Event::need_more};
    }
  }
}

// Each parse_* consumes one item and returns need_more if there is nothing to tell; if the item is
// incomplete it leaves the cursor where it was.
Result<MigrationStream::Event> MigrationStream::parse_item(Cursor& cursor,
                                                           std::vector<PageRef>& pages) {
  switch (state_) {
    case State::header:
      return parse_header(cursor);
    case State::section:
    case State::checkpoint_section:
      return parse_section(cursor);
    case State::configuration:
      return parse_configuration_subsection(cursor);
    case State::ram_words:
      return parse_ram_words(cursor, pages);
    case State::block_list:
      return parse_block_list(cursor);
    case State::footer:
      return parse_footer(cursor);
    case State::device_tail: {
      const std::size_t count = cursor.left();
      if (device_state_.size() + count > kDeviceStateBytesMax) {
        return fail(Errc::unsupported, "the device state is over the limit of 1 GiB");
      }
      device_state_.insert(device_state_.end(), cursor.here(), cursor.here() + count);
      cursor.skip(count);
      return Event::need_more;
    }
    case State::message:
      return parse_message(cursor);
    case State::device_size:
      return parse_device_size(cursor);
    case State::device_bytes:
      return parse_device_bytes(cursor);
    case State::ended:
      if (cursor.left() == 0) return Event::need_more;
      return fail(Errc::protocol, "bytes behind the end of a migration");
    case State::failed:
      break;
  }
  VMSHADOW_ASSERT(!"unreachable");
  return Event::need_more;
}

Result<MigrationStream::Event> MigrationStream::parse_header(Cursor& cursor) {
  if (!cursor.has(8)) return Event::need_more;
  std::uint32_t magic = 0;
  std::uint32_t version = 0;
  cursor.integer<be32>(magic);
  cursor.integer<be32>(version);
  if (magic != kStreamMagic) {
    return fail(Errc::protocol, fmt::format("not a migration stream (magic {:08x})", magic));
  }
  if (version != kStreamVersion) {
    return fail(Errc::unsupported,
                fmt::format("stream version {} (known: {})", version, kStreamVersion));
  }
  state_ = State::section;
  return Event::need_more;
}

Result<MigrationStream::Event> MigrationStream::parse_section(Cursor& cursor) {
  const std::size_t start = cursor.position();
  std::uint8_t type = 0;
  if (!cursor.u8(type)) return Event::need_more;
  Result<Event> event = Event::need_more;
  switch (type) {
    case kConfiguration:
      if (in_checkpoint()) return fail(Errc::protocol, "a configuration section in a checkpoint");
      event = parse_configuration(cursor);
      break;
    case kCommand:
      event = parse_command(cursor);
      break;
    case kSectionStart:
      event = parse_section_start(cursor);
      break;
    case kSectionPart:
      event = parse_section_part(cursor, false);
      break;
    case kSectionEnd:
      event = parse_section_part(cursor, true);
      break;
    case kEof:
      if (in_checkpoint()) {
        state_ = State::message;
        expected_message_ = ColoMessage::vmstate_size;
        return Event::ram_done;
      }
      return fail(Errc::closed, "QEMU ended the stream before its RAM was complete");
    case kSectionFull: {
      // Device state ahead of RAM (QEMU's early_setup devices, virtio-mem).
      std::uint32_t id = 0;
      std::string_view name;
      if (!cursor.integer<be32>(id) || !cursor.short_text(name)) {
        cursor.seek(start);
        break;
      }
      return fail(Errc::unsupported,
                  fmt::format("device '{}' sends state ahead of RAM, which is not captured", name));
    }
    default:
      return fail(Errc::protocol, fmt::format("unknown section type {:#04x}", type));
  }
  // An item that was incomplete left nothing changed but the type byte consumed.
  if (event && *event == Event::need_more &&
      (state_ == State::section || state_ == State::checkpoint_section) &&
      cursor.position() == start + 1) {
    cursor.seek(start);
  }
  return event;
}

Result<MigrationStream::Event> MigrationStream::parse_configuration(Cursor& cursor) {
  const std::size_t start = cursor.position();
  std::uint32_t length = 0;
  if (!cursor.integer<be32>(length)) return Event::need_more;
  if (length > kMachineNameBytesMax) return fail(Errc::protocol, "machine name too long");
  if (!cursor.has(length)) {
    cursor.seek(start);
    return Event::need_more;
  }
  if (!configuration_.empty()) return fail(Errc::protocol, "a second configuration section");
  cursor.skip(length);
  configuration_.assign(cursor.here() - (cursor.position() - start), cursor.here());
  state_ = State::configuration;
  return Event::need_more;
}

Result<MigrationStream::Event> MigrationStream::parse_configuration_subsection(Cursor& cursor) {
  const std::size_t start = cursor.position();
  std::uint8_t type = 0;
  if (!cursor.u8(type)) return Event::need_more;
  if (type != kSubsection) {
    cursor.seek(start);
    state_ = State::section;
    return Event::need_more;
  }
  std::string_view name;
  std::uint32_t version = 0;
  const auto incomplete = [&] {
    cursor.seek(start);
    return Event::need_more;
  };
  if (!cursor.short_text(name) || !cursor.integer<be32>(version)) return incomplete();
  if (name == "configuration/target-page-bits") {
    std::uint32_t bits = 0;
    if (!cursor.integer<be32>(bits)) return incomplete();
    if (bits != 12) {
      return fail(Errc::unsupported, fmt::format("target pages of 2^{} bytes (known: 2^12)", bits));
    }
  } else if (name == "configuration/uuid") {
    if (!cursor.has(16)) return incomplete();
    cursor.skip(16);
  } else if (name == "configuration/capabilities") {
    std::uint32_t count = 0;
    if (!cursor.integer<be32>(count)) return incomplete();
    if (count > kCapabilitiesMax) return fail(Errc::protocol, "too many capabilities");
    std::string_view capability;
    for (std::uint32_t i = 0; i < count; ++i) {
      if (!cursor.short_text(capability)) return incomplete();
    }
  } else {
    return fail(Errc::unsupported, fmt::format("configuration subsection '{}'", name));
  }
  const std::byte* first = cursor.here() - (cursor.position() - start);
  if (configuration_.size() + (cursor.position() - start) > kConfigurationBytesMax) {
    return fail(Errc::protocol, "configuration section too long");
  }
  configuration_.insert(configuration_.end(), first, cursor.here());
  return Event::need_more;
}

Result<MigrationStream::Event> MigrationStream::parse_command(Cursor& cursor) {
  const std::size_t start = cursor.position();
  std::uint16_t command = 0;
  std::uint16_t length = 0;
  if (!cursor.integer<be16>(command) || !cursor.integer<be16>(length) || !cursor.has(length)) {
    cursor.seek(start);
    return Event::need_more;
  }
  const StreamCommands& allowed =
      in_checkpoint() ? version_->checkpoint_commands : version_->initial_commands;
  if (!allowed.contains(command)) {
    return fail(Errc::unsupported, fmt::format("stream command {}", command));
  }
  if (command == static_cast<std::uint16_t>(StreamCommand::open_return_path)) {
    return_path_opened_ = true;
  }
  // Nothing else that a reader of state must act on.
  cursor.skip(length);
  return Event::need_more;
}

Result<MigrationStream::Event> MigrationStream::parse_section_start(Cursor& cursor) {
  const std::size_t start = cursor.position();
  std::uint32_t id = 0;
  std::uint32_t instance = 0;
  std::uint32_t version = 0;
  std::string_view name;
  if (!cursor.integer<be32>(id) || !cursor.short_text(name) || !cursor.integer<be32>(instance) ||
      !cursor.integer<be32>(version)) {
    cursor.seek(start);
    return Event::need_more;
  }
  if (name != "ram") {
    return fail(Errc::unsupported,
                fmt::format("'{}' sends live state of its own, which is not captured", name));
  }
  if (in_checkpoint() || layout_complete_) return fail(Errc::protocol, "a second RAM start");
  layout_.ram_section_id = id;
  layout_.ram_section_instance = instance;
  layout_.ram_section_version = version;
  state_ = State::ram_words;
  return Event::need_more;
}

Result<MigrationStream::Event> MigrationStream::parse_section_part(Cursor& cursor, bool last) {
  std::uint32_t id = 0;
  if (!cursor.integer<be32>(id)) return Event::need_more;
  if (!layout_complete_ || id != layout_.ram_section_id) {
    return fail(Errc::protocol, fmt::format("section {} is not RAM's", id));
  }
  ram_end_seen_ = last;
  state_ = State::ram_words;
  return Event::need_more;
}

Result<MigrationStream::Event> MigrationStream::parse_ram_words(Cursor& cursor,
                                                                std::vector<PageRef>& pages) {
  // The hot loop: stays here until the section ends or the bytes run out.
  for (;;) {
    const std::size_t start = cursor.position();
    if (!cursor.has(8)) return Event::need_more;
    const auto word = load<be64>(cursor.here());
    cursor.skip(8);
    const std::uint64_t flags = word & kRamFlagMask;
    const std::uint64_t offset = word & ~kRamFlagMask;

    if ((flags & (kRamPage | kRamZero)) != 0 &&
        (flags & ~(kRamPage | kRamZero | kRamContinue)) == 0 &&
        (flags & (kRamPage | kRamZero)) != (kRamPage | kRamZero)) {
      if ((flags & kRamContinue) == 0) {
        std::string_view name;
        if (!cursor.short_text(name)) {
          cursor.seek(start);
          return Event::need_more;
        }
        const auto block = block_by_name_.find(name);
        if (block == block_by_name_.end()) {
          return fail(Errc::protocol, fmt::format("a page of an unknown RAM block '{}'", name));
        }
        // Should the page itself be incomplete, its name is read again: the same block.
        last_block_ = block->second;
      }
      if (!last_block_) return fail(Errc::protocol, "CONTINUE before any RAM block was named");
      if (offset >= layout_.blocks[last_block_->value].bytes) {
        return fail(Errc::protocol, fmt::format("a page at {:#x} is outside RAM block '{}'", offset,
                                                layout_.blocks[last_block_->value].name));
      }
      const PageNumber page{offset / kPageBytes};
      if ((flags & kRamPage) != 0) {
        if (!cursor.has(kPageBytes)) {
          cursor.seek(start);
          return Event::need_more;
        }
        pages.push_back({*last_block_, page, cursor.here()});
        cursor.skip(kPageBytes);
      } else {
        std::uint8_t fill = 0;
        if (!cursor.u8(fill)) {
          cursor.seek(start);
          return Event::need_more;
        }
        if (fill != 0) {
          return fail(Errc::unsupported, fmt::format("a page filled with {:#04x}", fill));
        }
        pages.push_back({*last_block_, page, nullptr});
        ++zero_pages_seen_;
      }
      ++pages_seen_;
      continue;
    }
    if (flags == kRamEos) {
      state_ = State::footer;
      return Event::need_more;
    }
    if (flags == kRamMemSize) {
      if (layout_complete_ || in_checkpoint()) return fail(Errc::protocol, "a second block list");
      if (offset == 0) return fail(Errc::protocol, "an empty RAM block list");
      block_list_left_ = offset;
      state_ = State::block_list;
      return Event::need_more;
    }
    for (const RefusedFlag& refused : kRefusedFlags) {
      if ((flags & refused.bit) != 0) {
        return fail(Errc::unsupported,
                    fmt::format("RAM sent with '{}'; switch that migration capability off",
                                refused.feature));
      }
    }
    return fail(Errc::protocol, fmt::format("RAM payload word with flags {:#x}", flags));
  }
}

Result<MigrationStream::Event> MigrationStream::parse_block_list(Cursor& cursor) {
  const std::size_t start = cursor.position();
  std::string_view name;
  std::uint64_t bytes = 0;
  if (!cursor.short_text(name) || !cursor.integer<be64>(bytes)) {
    cursor.seek(start);
    return Event::need_more;
  }
  if (name.empty() || bytes == 0 || bytes % kPageBytes != 0 || bytes > kRamBlockBytesMax ||
      bytes > block_list_left_ || layout_.blocks.size() >= kRamBlocksMax) {
    return fail(Errc::protocol,
                fmt::format("RAM block '{}' of {} bytes is not possible", name, bytes));
  }
  const BlockIndex index{static_cast<std::uint16_t>(layout_.blocks.size())};
  if (!block_by_name_.emplace(name, index).second) {
    return fail(Errc::protocol, fmt::format("RAM block '{}' is listed twice", name));
  }
  layout_.blocks.push_back({std::string(name), bytes});
  block_list_left_ -= bytes;
  if (block_list_left_ > 0) return Event::need_more;
  layout_complete_ = true;
  state_ = State::ram_words;
  return Event::layout;
}

Result<MigrationStream::Event> MigrationStream::parse_footer(Cursor& cursor) {
  if (!cursor.has(5)) return Event::need_more;
  std::uint8_t mark = 0;
  std::uint32_t id = 0;
  cursor.u8(mark);
  cursor.integer<be32>(id);
  if (mark != kSectionFooter || id != layout_.ram_section_id) {
    return fail(Errc::protocol,
                fmt::format("a RAM section without its footer ({:02x} {})", mark, id));
  }
  if (in_checkpoint()) {
    state_ = State::checkpoint_section;
  } else if (ram_end_seen_) {
    state_ = State::device_tail;
    return Event::device_tail;
  } else {
    state_ = State::section;
  }
  return Event::need_more;
}

Result<MigrationStream::Event> MigrationStream::parse_message(Cursor& cursor) {
  std::uint32_t value = 0;
  if (!cursor.integer<be32>(value)) return Event::need_more;
  const auto message = static_cast<ColoMessage>(value);
  if (message != expected_message_) {
    return fail(Errc::protocol, fmt::format("COLO message {} where {} was expected", value,
                                            static_cast<std::uint32_t>(expected_message_)));
  }
  switch (message) {
    case ColoMessage::checkpoint_request:
      expected_message_ = ColoMessage::vmstate_send;
      return Event::request;
    case ColoMessage::vmstate_send:
      state_ = State::checkpoint_section;
      return Event::cut;
    case ColoMessage::vmstate_size:
      state_ = State::device_size;
      return Event::need_more;
    default:
      VMSHADOW_ASSERT(!"never expected");
      return Event::need_more;
  }
}

Result<MigrationStream::Event> MigrationStream::parse_device_size(Cursor& cursor) {
  if (!cursor.integer<be64>(device_left_)) return Event::need_more;
  if (device_left_ == 0 || device_left_ > kDeviceStateBytesMax) {
    return fail(Errc::protocol, fmt::format("a device state of {} bytes", device_left_));
  }
  device_state_.clear();
  state_ = State::device_bytes;
  return Event::need_more;
}

Result<MigrationStream::Event> MigrationStream::parse_device_bytes(Cursor& cursor) {
  const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(device_left_, cursor.left()));
  device_state_.insert(device_state_.end(), cursor.here(), cursor.here() + count);
  cursor.skip(count);
  device_left_ -= count;
  if (device_left_ > 0) return Event::need_more;
  if (static_cast<std::uint8_t>(device_state_.back()) != kEof) {
    return fail(Errc::protocol, "a device state that does not end in 0x00");
  }
  state_ = State::message;
  expected_message_ = ColoMessage::checkpoint_request;
  return Event::device_done;
}

// The tail is: FULL sections, 00, and (unless the machine type suppresses it) 06, be32 length and a
// JSON description of just that length. Sections have no length, so look for the description by the
// one place where its length fits.
std::optional<std::size_t> MigrationStream::find_description() const {
  constexpr std::size_t kHead = 5;
  for (std::size_t at = 1; at + kHead < device_state_.size(); ++at) {
    if (static_cast<std::uint8_t>(device_state_[at]) == kVmDescription &&
        static_cast<std::uint8_t>(device_state_[at - 1]) == kEof &&
        load<be32>(device_state_.data() + at + 1) == device_state_.size() - at - kHead &&
        static_cast<char>(device_state_[at + kHead]) == '{') {
      return at;
    }
  }
  return std::nullopt;
}

Status MigrationStream::strip_description(std::size_t at) {
  device_state_.resize(at);
  if (!device_state_.empty() && static_cast<std::uint8_t>(device_state_.back()) == kEof) return {};
  state_ = State::failed;
  return fail(Errc::protocol, "QEMU's device state does not end in 0x00");
}

Status MigrationStream::end_initial() {
  VMSHADOW_ASSERT(state_ == State::device_tail);
  VMSHADOW_TRY(strip_description(find_description().value_or(device_state_.size())));
  initial_done_ = true;
  state_ = State::message;
  expected_message_ = ColoMessage::checkpoint_request;
  return {};
}

Result<bool> MigrationStream::end_with_description() {
  VMSHADOW_ASSERT(state_ == State::device_tail);
  // Asked while the VM stands still: most of a tail that is not whole yet is told by its last byte.
  if (device_state_.empty() || static_cast<char>(device_state_.back()) != '}') return false;
  const auto description = find_description();
  if (!description) return false;
  VMSHADOW_TRY(strip_description(*description));
  state_ = State::ended;
  return true;
}

std::vector<std::byte> MigrationStream::take_device_state() {
  return std::exchange(device_state_, {});
}

}  // namespace vmshadow::capture
