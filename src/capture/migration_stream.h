// An incremental parser for QEMU's outgoing migration stream, including the COLO checkpoints that
// follow it. It sees the same bytes a QEMU secondary would (migration/savevm.c, ram.c, colo.c).
//
//   header ─► configuration/commands/RAM sections ─► RAM END ─► device tail ─┐ end_initial()
//        ┌──────────────────────────────────────────────────────────────────┘
//        └─► message ─► REQUEST ─► message ─► VMSTATE_SEND ─► RAM sections ─► 00 ─► message
//                 ▲                                                                  │
//                 └──────────── device bytes ◄── size ◄── VMSTATE_SIZE ◄─────────────┘
//
// A migration without COLO ends with the device tail: end_with_description().
//
// The caller keeps the bytes: parse() consumes whole items from the front of what it is given and
// leaves an incomplete one for next time, so pages are referenced where they lie and nothing is
// copied but device state. Everything read is bounded and checked; what is not understood is
// refused by name. Used by one thread.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <vmshadow/machine.h>
#include <vmshadow/page_sink.h>
#include <vmshadow/result.h>

#include "capture/colo_versions.h"

namespace vmshadow::capture {

/// COLO's messages (qapi/migration.json, COLOMessage), be32 on the wire, both directions.
enum class ColoMessage : std::uint32_t {
  checkpoint_ready = 0,
  checkpoint_request = 1,
  checkpoint_reply = 2,
  vmstate_send = 3,
  vmstate_size = 4,
  vmstate_received = 5,
  vmstate_loaded = 6,
};

/// What shuts the return path (MIG_RP_MSG_SHUT: be16 type 1, be16 length 4, be32 no error), as two
/// such words.
inline constexpr ColoMessage kReturnPathShut[] = {ColoMessage{0x0001'0004}, ColoMessage{0}};

class MigrationStream {
 public:
  /// The longest item parse() may leave unconsumed: a page with its word and block name.
  static constexpr std::size_t kItemBytesMax = 8 + 1 + 255 + kPageBytes;

  enum class Event {
    need_more,    ///< no whole item left; give more bytes
    layout,       ///< the RAM block list was read: layout() is set
    device_tail,  ///< initial RAM is complete; what follows is device state until end_initial()
    request,      ///< CHECKPOINT_REQUEST: QEMU would like to take a checkpoint
    cut,          ///< VMSTATE_SEND: the VM is stopped; its dirty pages follow
    ram_done,     ///< the checkpoint's RAM is complete
    device_done,  ///< the checkpoint's device state is complete: take_device_state()
  };
  struct Step {
    std::size_t consumed{};
    Event event{};
  };

  /// The stream is this QEMU's: what others may send is refused. Without it all versions' is taken.
  void set_version(const ColoVersion& version) { version_ = &version; }

  /// Consumes whole items from the front of `bytes` until an event or until none is left. Pages are
  /// appended to `pages`, their data pointing into `bytes`. Errors are final: Errc::protocol for
  /// what breaks the format, Errc::unsupported (by name) for what we do not capture.
  [[nodiscard]] Result<Step> parse(ByteSpan bytes, std::vector<PageRef>& pages);

  /// QEMU has entered COLO and all bytes before that were parsed: the initial device state is
  /// whole. Strips the machine's JSON description behind it. Afterwards the parser expects
  /// messages.
  [[nodiscard]] Status end_initial();

  /// For a stream that ends with its device state (no COLO): true once what was parsed of it is
  /// whole, which the machine's description at its end tells. Strips that; nothing follows. A
  /// machine that sends none (suppress-vmdesc) cannot be read so.
  [[nodiscard]] Result<bool> end_with_description();

  /// Set once Event::layout was returned.
  [[nodiscard]] const RamLayout& layout() const { return layout_; }
  /// The CONFIGURATION section's body (be32 length, name, subsections) as QEMU sent it.
  [[nodiscard]] const std::vector<std::byte>& configuration() const { return configuration_; }
  /// Device FULL sections followed by 0x00; leaves the parser's copy empty.
  [[nodiscard]] std::vector<std::byte> take_device_state();
  /// QEMU listens on the return path, and does not enter COLO before that is shut.
  [[nodiscard]] bool return_path_opened() const { return return_path_opened_; }
  /// Page records seen since construction.
  [[nodiscard]] std::uint64_t pages_seen() const { return pages_seen_; }
  [[nodiscard]] std::uint64_t zero_pages_seen() const { return zero_pages_seen_; }

 private:
  enum class State {
    header,
    section,        // initial: at a section type
    configuration,  // initial: just behind CONFIGURATION; a subsection or a section type follows
    ram_words,      // in a RAM section: at a payload word
    block_list,     // in MEM_SIZE's list
    footer,         // at a section footer
    device_tail,    // initial: opaque until end_initial() or end_with_description()
    message,        // at a COLO message
    checkpoint_section,  // in a checkpoint: at a section type
    device_size,
    device_bytes,
    ended,  // behind end_with_description()
    failed,
  };
  class Cursor;

  [[nodiscard]] Result<Event> parse_item(Cursor& cursor, std::vector<PageRef>& pages);
  [[nodiscard]] Result<Event> parse_header(Cursor& cursor);
  [[nodiscard]] Result<Event> parse_section(Cursor& cursor);
  [[nodiscard]] Result<Event> parse_section_start(Cursor& cursor);
  [[nodiscard]] Result<Event> parse_section_part(Cursor& cursor, bool last);
  [[nodiscard]] Result<Event> parse_configuration(Cursor& cursor);
  [[nodiscard]] Result<Event> parse_configuration_subsection(Cursor& cursor);
  [[nodiscard]] Result<Event> parse_command(Cursor& cursor);
  [[nodiscard]] Result<Event> parse_ram_words(Cursor& cursor, std::vector<PageRef>& pages);
  [[nodiscard]] Result<Event> parse_block_list(Cursor& cursor);
  [[nodiscard]] Result<Event> parse_footer(Cursor& cursor);
  [[nodiscard]] Result<Event> parse_message(Cursor& cursor);
  [[nodiscard]] Result<Event> parse_device_size(Cursor& cursor);
  [[nodiscard]] Result<Event> parse_device_bytes(Cursor& cursor);
  /// Where the machine's description begins in the device tail; nullopt if it does not end with
  /// one.
  [[nodiscard]] std::optional<std::size_t> find_description() const;
  [[nodiscard]] Status strip_description(std::size_t at);
  [[nodiscard]] bool in_checkpoint() const { return initial_done_; }

  const ColoVersion* version_ = &colo_versions().back();
  State state_ = State::header;
  bool initial_done_ = false;
  bool ram_end_seen_ = false;  // initial: the section now read is RAM's END
  bool layout_complete_ = false;
  bool return_path_opened_ = false;
  ColoMessage expected_message_ = ColoMessage::checkpoint_request;
  std::uint64_t block_list_left_ = 0;  // bytes of RAM whose blocks are not listed yet
  std::uint64_t device_left_ = 0;
  // CONTINUE refers to the block of the page before it, across sections and checkpoints.
  std::optional<BlockIndex> last_block_;
  RamLayout layout_;
  std::map<std::string, BlockIndex, std::less<>> block_by_name_;
  std::vector<std::byte> configuration_;
  std::vector<std::byte> device_state_;
  std::uint64_t pages_seen_ = 0;
  std::uint64_t zero_pages_seen_ = 0;
  std::uint64_t offset_ = 0;  // bytes consumed since construction, for messages
};

}  // namespace vmshadow::capture
