// For tests of what makes or carries an epoch's records: takes them apart with the format library
// alone, checks sequence, chain and counts, and applies them in order to a model of guest RAM.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <map>
#include <vector>

#include "delta/page_group_codec.h"
#include "format/epoch_records.h"
#include "format/record.h"

namespace vmshadow::testing {

using Page = std::array<std::byte, kPageBytes>;
/// Pages held, by place; a page that is absent was never stored.
using PageMap = std::map<format::PageKey, Page>;

struct DecodedEpoch {
  bool has_machine = false;
  MachineDescription machine;
  std::vector<std::byte> device_state;
  format::EpochSummary summary;
  std::vector<format::RecordHead> heads;
  std::vector<std::size_t> group_sizes;
  std::vector<format::ZeroRun> zero_runs;
};

/// Decodes `records` (one whole epoch) and applies its pages to `ram`. Every defect is a test
/// failure.
inline DecodedEpoch decode_epoch(ByteSpan records, PageMap& ram) {
  DecodedEpoch epoch;
  std::uint64_t chain = 0;
  std::uint64_t stored = 0;
  std::uint64_t zeros = 0;
  std::size_t at = 0;
  bool ended = false;
  while (at < records.size()) {
    EXPECT_FALSE(ended) << "a record after epoch_end";
    if (records.size() - at < format::kRecordPrefixBytes) {
      ADD_FAILURE() << "torn prefix";
      return epoch;
    }
    const auto prefix = format::decode_prefix(records.subspan(at));
    if (!prefix) {
      ADD_FAILURE() << prefix.error().message;
      return epoch;
    }
    const ByteSpan body =
        records.subspan(at + format::kRecordPrefixBytes).first(prefix->body_bytes);
    const auto checked = format::check_body(*prefix, body);
    EXPECT_TRUE(checked) << checked.error().message;
    EXPECT_EQ(prefix->head.sequence, epoch.heads.size());
    switch (prefix->head.type) {
      case format::RecordType::machine: {
        EXPECT_TRUE(epoch.heads.empty()) << "machine is not the first record";
        auto machine = format::decode_machine(body);
        if (!machine) ADD_FAILURE() << machine.error().message;
        if (machine) epoch.machine = *std::move(machine);
        epoch.has_machine = true;
        break;
      }
      case format::RecordType::page_group: {
        const auto group = format::decode_page_group(body);
        if (!group) {
          ADD_FAILURE() << group.error().message;
          return epoch;
        }
        std::vector<std::byte> pages(group->page_count * kPageBytes);
        const auto decoded = delta::decode_pages(*group, pages);
        EXPECT_TRUE(decoded) << decoded.error().message;
        for (std::size_t slot = 0; slot < group->page_count; ++slot) {
          std::memcpy(ram[group->keys[slot]].data(), pages.data() + slot * kPageBytes, kPageBytes);
        }
        stored += group->page_count;
        epoch.group_sizes.push_back(group->page_count);
        break;
      }
      case format::RecordType::zero_pages: {
        const auto runs = format::decode_zero_pages(body);
        if (!runs) {
          ADD_FAILURE() << runs.error().message;
          return epoch;
        }
        for (const format::ZeroRun& run : *runs) {
          for (std::uint64_t i = 0; i < run.count; ++i) {
            ram[{run.first.block, PageNumber{run.first.page.value + i}}] = Page{};
          }
          zeros += run.count;
          epoch.zero_runs.push_back(run);
        }
        break;
      }
      case format::RecordType::device_state:
        epoch.device_state.insert(epoch.device_state.end(), body.begin(), body.end());
        EXPECT_LE(body.size(), format::kDeviceStatePieceBytes);
        break;
      case format::RecordType::epoch_end: {
        ended = true;
        const auto summary = format::decode_epoch_end(body);
        if (!summary) {
          ADD_FAILURE() << summary.error().message;
          return epoch;
        }
        epoch.summary = *summary;
        EXPECT_EQ(summary->record_count, epoch.heads.size());
        EXPECT_EQ(summary->chain, chain);
        EXPECT_EQ(summary->stored_pages, stored + zeros);
        EXPECT_EQ(summary->zero_pages, zeros);
        EXPECT_EQ(summary->record_bytes, at);
        EXPECT_EQ(summary->device_bytes, epoch.device_state.size());
        break;
      }
      default:
        ADD_FAILURE() << "a record type that is no epoch's";
        return epoch;
    }
    chain = format::extend_chain(chain, prefix->prefix_checksum);
    epoch.heads.push_back(prefix->head);
    at += format::kRecordPrefixBytes + body.size();
  }
  EXPECT_TRUE(ended) << "no epoch_end";
  return epoch;
}

}  // namespace vmshadow::testing
