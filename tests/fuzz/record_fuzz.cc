// A record: the prefix as it comes, and the rest through every body decoder an epoch or a journal
// has, whatever the checksums say (they would keep the fuzzer out). What decodes must encode to
// itself.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/assert.h"
#include "format/epoch_records.h"
#include "format/journal.h"
#include "format/skeleton.h"
#include "format/store_state.h"

namespace {

using namespace vmshadow;
using namespace vmshadow::format;

void expect_same(const std::vector<std::byte>& encoded, ByteSpan body) {
  VMSHADOW_ASSERT(std::equal(encoded.begin(), encoded.end(), body.begin(), body.end()));
}

void decode_bodies(ByteSpan body) {
  std::vector<std::byte> encoded;
  if (const auto machine = decode_machine(body)) {
    append_machine_body(encoded, *machine);
    expect_same(encoded, body);
  }
  if (const auto group = decode_page_group(body)) {
    VMSHADOW_ASSERT(group->page_count >= 1 && group->page_count <= kGroupPagesMax);
    encoded.clear();
    append_page_group_body(encoded, group->codec, std::span(group->keys).first(group->page_count),
                           std::span(group->checksums).first(group->page_count), group->payload);
    expect_same(encoded, body);
  }
  if (const auto runs = decode_zero_pages(body)) {
    encoded.clear();
    append_zero_pages_body(encoded, *runs);
    expect_same(encoded, body);
  }
  if (const auto summary = decode_epoch_end(body)) {
    encoded.clear();
    append_epoch_end_body(encoded, *summary);
    expect_same(encoded, body);
  }
  const auto journal = [&](const auto& decoded) {
    if (!decoded) return;
    encoded.clear();
    append_body(encoded, *decoded);
    expect_same(encoded, body);
  };
  journal(decode_commit(body));
  journal(decode_grant(body));
  journal(decode_vm_state(body));
  journal(decode_segment_list(body));
  journal(decode_replace(body));
  journal(decode_archived_epoch(body));
  journal(decode_loss(body));
  journal(decode_seal(body));
  if (const auto pad = decode_pad(body)) {
    encoded.clear();
    append_body(encoded, *pad);
    expect_same(encoded, body.first(sizeof(PadBytes)));
  }
  if (const auto mark = decode_mark(body)) {
    encoded.clear();
    append_body(encoded, *mark);
    expect_same(encoded, body.first(sizeof(MarkBytes)));
  }
  std::uint64_t entries = 0;
  std::uint64_t end = kSegmentHeadBytes;
  const auto skeleton = for_each_skeleton_entry(body, [&](const SkeletonEntry& entry) {
    ++entries;
    VMSHADOW_ASSERT(entry.offset >= end && entry.offset < kSegmentBytesMax);
    end = entry.offset + kRecordPrefixBytes + entry.prefix.body_bytes;
    VMSHADOW_ASSERT(!entry.meta || entry.meta->size() <= entry.prefix.body_bytes);
  });
  VMSHADOW_ASSERT(!skeleton || entries <= body.size() / sizeof(SkeletonEntryBytes));
  // A page_group is also taken apart without its payload: never more than the whole would give.
  if (const auto keys = decode_page_group_keys(body)) {
    VMSHADOW_ASSERT(page_group_keys_bytes(keys->page_count) <= body.size());
    VMSHADOW_ASSERT(skeleton_meta_bytes(RecordType::page_group, body) ==
                    page_group_keys_bytes(keys->page_count));
  } else {
    VMSHADOW_ASSERT(!decode_page_group(body));
  }
  if (const auto head = decode_segment_head(body)) {
    const auto again = decode_segment_head(encode_segment_head(*head));
    VMSHADOW_ASSERT(again && *again == *head);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  decode_bodies(bytes);
  if (size < kRecordPrefixBytes) return 0;
  const ByteSpan body = bytes.subspan(kRecordPrefixBytes);
  if (const auto prefix = decode_prefix(bytes)) {
    VMSHADOW_ASSERT(prefix->body_bytes <= kRecordBodyBytesMax);
    if (check_body(*prefix, body)) {
      std::vector<std::byte> encoded;
      append_record(encoded, prefix->head, body);
      expect_same(encoded, bytes);
    }
  }
  decode_bodies(body);
  return 0;
}
