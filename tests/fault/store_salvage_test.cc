// Damaged page groups cost the pages that were hit, no others; and not those either, if the store
// has them once more.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <utility>

#include "delta/page_group_codec.h"
#include "store/reader.h"
#include "store/store.h"
#include "store/verifier.h"
#include "support/epoch_maker.h"
#include "support/given_keys.h"
#include "support/manual_clock.h"
#include "support/temp_dir.h"

namespace vmshadow::store {
namespace {

using format::RecordType;
using std::chrono::seconds;
using testing::AllOf;
using testing::HasSubstr;
using Page = std::vector<std::byte>;

constexpr std::size_t kGroupPages = format::kGroupPagesMax;

/// A page that lz4 makes smaller, unlike test::page_of().
Page wordy_page(std::uint64_t stamp) {
  Page page(kPageBytes);
  for (std::size_t i = 0; i < kPageBytes; ++i) {
    const std::uint64_t word = (i / 24 * 2654435761u + stamp * 40503u) % 61;
    page[i] = static_cast<std::byte>(word * 7 + i % 24);
  }
  return page;
}

class SalvageTest : public testing::Test {
 protected:
  SalvageTest() : default_logger_(spdlog::default_logger()) {
    spdlog::set_default_logger(std::make_shared<spdlog::logger>(
        "salvage", std::make_shared<spdlog::sinks::ostream_sink_mt>(log_)));
  }
  ~SalvageTest() override { spdlog::set_default_logger(default_logger_); }

  std::string dir() const { return temp_.file("store"); }
  std::unique_ptr<Store> open(bool with_keys = false) {
    StoreOptions options;
    options.log.room_bytes_min = 0;
    options.retention = {seconds(60), seconds(0), seconds(0), seconds(0)};
    options.background_maintenance = false;
    if (with_keys) options.keys = keys_;
    auto store = Store::open(
        dir(), clock_, [] { return io::make_file_system(io::FileBackend::syscalls); }, options);
    if (!store) throw std::runtime_error(store.error().message);
    return std::move(*store);
  }
  /// A new generation with one full epoch: `pages` in groups of 16, the rest zero.
  void ship_full(Store& store, const std::vector<Page>& pages) {
    auto session = store.open_session("web", "peer");
    ASSERT_TRUE(session) << session.error().message;
    // Its device state and machine are the maker's; its pages are ours.
    const test::MadeEpoch made =
        maker_.make((*session)->generation(), (*session)->next_epoch(), true, {});
    format::EpochSummary summary =
        *format::decode_epoch_end(ByteSpan(made.end).subspan(format::kRecordPrefixBytes));
    summary.chain = 0;
    summary.record_bytes = 0;
    summary.record_count = 0;
    const auto send = [&](format::RecordHead head, ByteSpan body) {
      head.sequence = summary.record_count++;
      std::vector<std::byte> record;
      summary.chain =
          format::extend_chain(summary.chain, format::append_record(record, head, body));
      summary.record_bytes += record.size();
      const auto sent = (*session)->append(record);
      ASSERT_TRUE(sent) << sent.error().message;
    };
    format::RecordHead head;
    bool groups_sent = false;
    for (const auto& record : made.records) {
      head = format::decode_prefix(record)->head;
      if (head.type == RecordType::device_state && !std::exchange(groups_sent, true)) {
        send_groups(pages, head, summary, send);
      }
      send(head, ByteSpan(record).subspan(format::kRecordPrefixBytes));
    }
    head.type = RecordType::epoch_end;
    head.sequence = summary.record_count;
    std::vector<std::byte> end;
    std::vector<std::byte> body;
    format::append_epoch_end_body(body, summary);
    format::append_record(end, head, body);
    const auto receipt = (*session)->commit(end);
    ASSERT_TRUE(receipt) << receipt.error().message;
    pages_ = pages;
  }
  template <class Send>
  static void send_groups(const std::vector<Page>& pages, format::RecordHead head,
                          format::EpochSummary& summary, const Send& send) {
    head.type = RecordType::page_group;
    delta::PageGroupEncoder encoder;
    for (std::size_t at = 0; at < pages.size(); at += kGroupPages) {
      std::vector<format::PageKey> keys;
      std::vector<std::byte> bytes;
      for (std::size_t i = at; i < std::min(pages.size(), at + kGroupPages); ++i) {
        keys.push_back({BlockIndex{0}, PageNumber{i}});
        format::append_bytes(bytes, pages[i]);
      }
      std::vector<std::byte> body;
      encoder.append_body(body, keys, bytes.data());
      send(head, body);
      summary.stored_pages += keys.size();
    }
  }
  /// 16 pages that lz4 makes smaller, then 16 that it does not.
  static std::vector<Page> both_kinds(std::uint64_t seed = 0) {
    std::vector<Page> pages;
    for (std::uint64_t i = 0; i < kGroupPages; ++i) pages.push_back(wordy_page(seed + i));
    for (std::uint64_t i = 1; i <= kGroupPages; ++i) pages.push_back(test::page_of(seed + i));
    return pages;
  }

  struct Place {
    std::string path;
    std::uint64_t offset{};
    format::RecordPrefix prefix;
    format::Codec codec{};
  };
  /// The plain groups of an epoch, wherever they are.
  std::vector<Place> groups_of(Epoch epoch) const {
    std::vector<Place> places;
    for (const auto& file : std::filesystem::directory_iterator(dir() + "/segments")) {
      if (file.path().extension() != ".seg") continue;  // what a spare file holds means nothing
      std::ifstream in(file.path(), std::ios::binary);
      const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
      const auto bytes = std::as_bytes(std::span(text));
      for (std::size_t at = format::kSegmentHeadBytes;
           at + format::kRecordPrefixBytes <= bytes.size();) {
        const auto prefix = format::decode_prefix(bytes.subspan(at));
        if (!prefix) break;
        const auto body = bytes.subspan(at + format::kRecordPrefixBytes, prefix->body_bytes);
        if (prefix->head.type == RecordType::page_group && prefix->head.epoch == epoch) {
          const auto group = format::decode_page_group(body);
          places.push_back({file.path(), at, *prefix, group->codec});
        }
        at += format::kRecordPrefixBytes + prefix->body_bytes;
        at += format::alignment_gap(at);
      }
    }
    return places;
  }
  Place group_of(Epoch epoch, format::Codec codec) const {
    for (const Place& place : groups_of(epoch)) {
      if (place.codec == codec) return place;
    }
    throw std::runtime_error("the epoch has no such group");
  }
  static void flip(const Place& place, std::uint64_t at) {
    std::fstream file(place.path, std::ios::binary | std::ios::in | std::ios::out);
    file.seekg(static_cast<std::streamoff>(place.offset + at));
    const int byte = file.get();
    file.seekp(static_cast<std::streamoff>(place.offset + at));
    file.put(static_cast<char>(byte ^ 1 << at % 8));
  }
  /// The pages that cannot be read; all others must be right, one by one and together.
  std::vector<std::uint64_t> unreadable(Epoch epoch) {
    std::vector<std::uint64_t> lost;
    const auto reader = Reader::open(dir());
    const auto image = (*reader)->open("web", epoch);
    EXPECT_TRUE(image) << image.error().message;
    if (!image) return lost;
    Page page(kPageBytes);
    for (std::uint64_t i = 0; i < pages_.size(); ++i) {
      if (const auto read = (*image)->read_page(BlockIndex{0}, PageNumber{i}, page); !read) {
        EXPECT_EQ(read.error().code, Errc::corrupt);
        lost.push_back(i);
      } else {
        EXPECT_TRUE(page == pages_[i]) << "page " << i;
      }
    }
    std::size_t visited = 0;
    const auto all =
        (*image)->for_each_page(BlockIndex{0}, [&](PageNumber number, const std::byte* data) {
          if (number.value >= pages_.size()) return Status();
          ++visited;
          EXPECT_TRUE(data != nullptr &&
                      std::equal(pages_[number.value].begin(), pages_[number.value].end(), data))
              << "page " << number.value;
          return Status();
        });
    EXPECT_EQ(all.has_value(), lost.empty());
    EXPECT_TRUE(!all || visited == pages_.size());
    return lost;
  }
  /// Moves all epochs into archives.
  void archive() {
    auto store = open();
    const auto info = store->reader()->vm("web");
    ASSERT_TRUE(info);
    for (const EpochInfo& epoch : info->epochs) {
      ASSERT_TRUE(store->pin("web", epoch.epoch));
    }
    clock_.advance(std::chrono::hours(1));
    ASSERT_TRUE(store->maintain());
    ASSERT_GT(store->stats().archive_segments, 0u);
  }
  StoreStats scrub_all(bool with_keys = false) {
    auto store = open(with_keys);
    const auto scrubbed = store->scrub(std::uint64_t{1} << 30);
    EXPECT_TRUE(scrubbed) << scrubbed.error().message;
    EXPECT_EQ(store->damage().size(), 1u);
    return store->stats();
  }

  std::ostringstream log_;
  std::shared_ptr<spdlog::logger> default_logger_;
  test::TempDir temp_{test::TempDir::Where::memory};
  test::ManualClock clock_;
  std::shared_ptr<test::GivenKeys> keys_ = std::make_shared<test::GivenKeys>();
  test::EpochMaker maker_{"web", 40};
  std::vector<Page> pages_;
};

/// Bits flipped everywhere in a group's record: prefix, head, keys, checksums, payload.
TEST_F(SalvageTest, AFlippedBitCostsThePagesItHit) {
  ship_full(*open(), both_kinds());
  const std::size_t keys_at = format::kRecordPrefixBytes + sizeof(format::PageGroupHeadBytes);
  const std::size_t checksums_at = keys_at + kGroupPages * sizeof(le64);
  const std::size_t payload_at = checksums_at + kGroupPages * sizeof(le64);
  for (const format::Codec codec : {format::Codec::lz4, format::Codec::raw}) {
    const Place group = group_of(Epoch{0}, codec);
    const std::uint64_t first = codec == format::Codec::lz4 ? 0 : kGroupPages;
    const std::size_t bytes = format::kRecordPrefixBytes + group.prefix.body_bytes;
    std::size_t salvaged = 0;
    std::size_t flips = 0;
    for (std::size_t at = 0; at < bytes; at += at < payload_at ? 3 : bytes / 40) {
      SCOPED_TRACE(fmt::format("codec {} byte {}", static_cast<int>(codec), at));
      flip(group, at);
      const std::vector<std::uint64_t> lost = unreadable(Epoch{0});
      flip(group, at);
      if (HasFailure()) return;
      for (const std::uint64_t page : lost) {
        ASSERT_TRUE(page >= first && page < first + kGroupPages) << "another group's page " << page;
      }
      ++flips;
      salvaged += kGroupPages - lost.size();
      const auto only = [&](std::uint64_t slot) {
        EXPECT_THAT(lost, testing::ElementsAre(first + slot));
      };
      if (at < format::kRecordPrefixBytes) {
        EXPECT_TRUE(lost.empty()) << "the pages have checksums of their own";
      } else if (at < keys_at) {
        EXPECT_EQ(lost.size(), kGroupPages) << "the head is not the group's";
      } else if (at < checksums_at) {
        // A key that cannot be one, or is another page's too, leaves no group.
        EXPECT_TRUE(lost.size() == 1 || lost.size() == kGroupPages);
        EXPECT_THAT(lost, testing::Contains(first + (at - keys_at) / sizeof(le64)));
      } else if (at < payload_at) {
        only((at - checksums_at) / sizeof(le64));
      } else if (codec == format::Codec::raw) {
        only((at - payload_at) / kPageBytes);
      } else {
        EXPECT_FALSE(lost.empty());
      }
    }
    EXPECT_GT(flips, 100u);
    EXPECT_GT(salvaged, 8 * flips);
    EXPECT_TRUE(unreadable(Epoch{0}).empty());
  }
}

TEST_F(SalvageTest, VerifyCountsWhatIsWhole) {
  ship_full(*open(), both_kinds());
  const Place group = group_of(Epoch{0}, format::Codec::raw);
  const auto verified = [&] {
    auto report = Verifier::run(dir());
    EXPECT_TRUE(report && report->damage.size() == 1);
    return *std::move(report);
  };
  flip(group, 20);  // the prefix alone: nothing is lost
  EXPECT_THAT(verified().damage[0].text(), HasSubstr("; 16 of its 16 pages are whole"));
  EXPECT_EQ(verified().vms[0].epochs.size(), 1u);
  flip(group, 20);
  flip(group, format::kRecordPrefixBytes + group.prefix.body_bytes - 1);
  EXPECT_THAT(verified().damage[0].text(), HasSubstr("; 15 of its 16 pages are whole"));
  EXPECT_TRUE(verified().vms[0].epochs.empty()) << "the epoch needs the sixteenth";
  const auto image = (*Reader::open(dir()))->open("web", Epoch{0});
  const auto all = (*image)->for_each_page(BlockIndex{0}, [](auto, auto) { return Status(); });
  ASSERT_FALSE(all);
  EXPECT_THAT(all.error().message, AllOf(HasSubstr("record body fails its checksum"),
                                         HasSubstr("page 31 of block 0 is lost with it")));
}

TEST_F(SalvageTest, ScrubbingKeepsWhatIsWholeAndMarksTheRest) {
  ship_full(*open(), both_kinds());
  archive();
  const Place group = group_of(Epoch{0}, format::Codec::raw);
  flip(group, format::kRecordPrefixBytes + group.prefix.body_bytes - 1);
  const StoreStats stats = scrub_all();
  EXPECT_EQ(stats.salvaged_pages, 15u);
  EXPECT_EQ(stats.repaired_pages, 0u);
  EXPECT_EQ(stats.lost_pages, 1u);
  EXPECT_THAT(log_.str(),
              HasSubstr("of 16 pages that are needed 15 were whole, repaired 0 pages, 1 "
                        "are lost"));
  EXPECT_THAT(unreadable(Epoch{0}), testing::ElementsAre(31));
  Page page(kPageBytes);
  const auto image = (*Reader::open(dir()))->open("web", Epoch{0});
  EXPECT_THAT((*image)->read_page(BlockIndex{0}, PageNumber{31}, page).error().message,
              HasSubstr("the pages were lost to damage"));
}

TEST_F(SalvageTest, ALostPageIsRepairedFromAnotherGeneration) {
  std::vector<Page> pages = both_kinds();
  ship_full(*open(), pages);
  const std::vector<Page> first = pages;
  pages[3] = test::page_of(999);
  ship_full(*open(), pages);
  archive();
  // In the first generation's epoch pages 31, and 3, of which there is no other.
  const Place raw = group_of(Epoch{0}, format::Codec::raw);
  flip(raw, format::kRecordPrefixBytes + raw.prefix.body_bytes - 1);
  StoreStats stats = scrub_all();
  EXPECT_EQ(stats.salvaged_pages, 15u);
  EXPECT_EQ(stats.repaired_pages, 1u);
  EXPECT_EQ(stats.lost_pages, 0u);
  EXPECT_THAT(log_.str(), HasSubstr("repaired 1 pages from epoch 1, 0 are lost"));
  pages_ = first;
  EXPECT_TRUE(unreadable(Epoch{0}).empty());
  auto report = Verifier::run(dir());
  ASSERT_TRUE(report);
  EXPECT_TRUE(report->damage.empty()) << report->damage[0].text();

  const Place lz4 = group_of(Epoch{0}, format::Codec::lz4);
  const std::size_t third_checksum = format::kRecordPrefixBytes +
                                     sizeof(format::PageGroupHeadBytes) +
                                     (kGroupPages + 3) * sizeof(le64);
  flip(lz4, third_checksum);
  stats = scrub_all();
  EXPECT_EQ(stats.lost_pages, 1u) << "page 3 of epoch 1 is another";
  EXPECT_THAT(unreadable(Epoch{0}), testing::ElementsAre(3));
  pages_ = pages;
  EXPECT_TRUE(unreadable(Epoch{1}).empty());
}

TEST_F(SalvageTest, APageIsRepairedFromAZeroPage) {
  std::vector<Page> pages = both_kinds();
  pages.back() = Page(kPageBytes);  // sent as data all the same
  ship_full(*open(), pages);
  ship_full(*open(), {pages.begin(), pages.begin() + kGroupPages});
  archive();
  pages_ = pages;
  const std::vector<Place> groups = groups_of(Epoch{0});
  const Place group = *std::max_element(
      groups.begin(), groups.end(),
      [](const auto& a, const auto& b) { return a.prefix.body_bytes < b.prefix.body_bytes; });
  flip(group, format::kRecordPrefixBytes + group.prefix.body_bytes - 1);
  EXPECT_THAT(unreadable(Epoch{0}), testing::ElementsAre(pages.size() - 1));
  const StoreStats stats = scrub_all();
  EXPECT_EQ(stats.salvaged_pages, 15u);
  EXPECT_EQ(stats.repaired_pages, 1u);
  EXPECT_EQ(stats.lost_pages, 0u);
  EXPECT_TRUE(unreadable(Epoch{0}).empty());
}

/// What was encrypted must not come out of it because a checksum on the disk asks for it.
TEST_F(SalvageTest, NothingIsRepairedOutOfEncryptedEpochs) {
  keys_->give("web", {5});
  ship_full(*open(), both_kinds());
  ship_full(*open(true), both_kinds());
  archive();
  const Place raw = group_of(Epoch{0}, format::Codec::raw);
  flip(raw, format::kRecordPrefixBytes + raw.prefix.body_bytes - 1);
  const StoreStats stats = scrub_all(true);
  EXPECT_EQ(stats.repaired_pages, 0u);
  EXPECT_EQ(stats.lost_pages, 1u);
}

}  // namespace
}  // namespace vmshadow::store
