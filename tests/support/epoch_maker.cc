#include "support/epoch_maker.h"

#include <fmt/format.h>

#include <cstring>
#include <random>

namespace vmshadow::test {

using format::RecordType;

std::vector<std::byte> page_of(Stamp stamp) {
  std::vector<std::byte> page(kPageBytes);
  if (stamp == 0) return page;
  std::mt19937_64 random(stamp);
  for (std::size_t at = 0; at < kPageBytes; at += 8) {
    const std::uint64_t word = random();
    std::memcpy(page.data() + at, &word, sizeof word);
  }
  return page;
}

EpochMaker::EpochMaker(std::string vm_name, std::uint64_t ram_pages)
    : vm_name_(std::move(vm_name)) {
  machine_.json = R"({"qemu":"test"})";
  machine_.configuration.assign(9, std::byte{7});
  machine_.layout.blocks = {{"pc.ram", ram_pages * kPageBytes}, {"pc.bios", 8 * kPageBytes}};
  machine_.layout.ram_section_id = 2;
  machine_.layout.ram_section_version = 4;
}

namespace {

void append_raw_group(std::vector<std::byte>& out,
                      const std::vector<EpochMaker::PageWrite>& writes) {
  std::vector<format::PageKey> keys;
  std::vector<std::uint64_t> checksums;
  std::vector<std::byte> payload;
  for (const auto& write : writes) {
    const std::vector<std::byte> page = page_of(write.stamp);
    keys.push_back({BlockIndex{write.block}, PageNumber{write.page}});
    checksums.push_back(format::page_checksum(page.data()));
    format::append_bytes(payload, page);
  }
  format::append_page_group_body(out, format::Codec::raw, keys, checksums, payload);
}

/// Adds records to an epoch and keeps its sums.
class Assembler {
 public:
  Assembler(MadeEpoch& made, format::RecordHead head) : made_(made), head_(head) {}

  void add(RecordType type, const std::vector<std::byte>& body) {
    head_.type = type;
    head_.sequence = summary.record_count++;
    std::vector<std::byte>& record = made_.records.emplace_back();
    summary.chain = format::extend_chain(summary.chain, format::append_record(record, head_, body));
    summary.record_bytes += record.size();
  }
  void finish() {
    head_.type = RecordType::epoch_end;
    head_.sequence = summary.record_count;
    std::vector<std::byte> body;
    format::append_epoch_end_body(body, summary);
    format::append_record(made_.end, head_, body);
  }
  format::EpochSummary summary;

 private:
  MadeEpoch& made_;
  format::RecordHead head_;
};

}  // namespace

MadeEpoch EpochMaker::make(Generation generation, Epoch epoch, bool full,
                           const std::vector<PageWrite>& writes, std::size_t group_pages,
                           std::size_t device_bytes) {
  before_ = image_;
  MadeEpoch made;
  Assembler out(made, {RecordType::machine, 0, vm_id(vm_name_), generation, epoch});
  std::vector<std::byte> body;
  if (full) {
    image_.machine = machine_;
    format::append_machine_body(body, machine_);
    out.add(RecordType::machine, body);
    // Every page is zero at first; what is written then comes behind it.
    image_.pages.clear();
    std::vector<format::ZeroRun> runs;
    for (std::uint16_t block = 0; block < machine_.layout.blocks.size(); ++block) {
      const std::uint64_t pages = machine_.layout.blocks[block].pages();
      runs.push_back({{BlockIndex{block}, PageNumber{0}}, pages});
      for (std::uint64_t page = 0; page < pages; ++page) {
        image_.pages[format::PageKey{BlockIndex{block}, PageNumber{page}}.packed()] = 0;
      }
      out.summary.stored_pages += pages;
      out.summary.zero_pages += pages;
    }
    body.clear();
    format::append_zero_pages_body(body, runs);
    out.add(RecordType::zero_pages, body);
  }
  std::vector<PageWrite> group;
  const auto flush = [&] {
    if (group.empty()) return;
    body.clear();
    append_raw_group(body, group);
    out.add(RecordType::page_group, body);
    group.clear();
  };
  for (const PageWrite& write : writes) {
    const format::PageKey key{BlockIndex{write.block}, PageNumber{write.page}};
    image_.pages[key.packed()] = write.stamp;
    ++out.summary.stored_pages;
    if (write.stamp == 0) {
      flush();
      ++out.summary.zero_pages;
      const format::ZeroRun run{key, 1};
      body.clear();
      format::append_zero_pages_body(body, {&run, 1});
      out.add(RecordType::zero_pages, body);
      continue;
    }
    const auto same = [&](const PageWrite& w) {
      return w.page == write.page && w.block == write.block;
    };
    if (group.size() >= group_pages || std::any_of(group.begin(), group.end(), same)) flush();
    group.push_back(write);
  }
  flush();
  image_.device.assign(device_bytes, static_cast<std::byte>(epoch.value + generation.value * 16));
  for (std::size_t at = 0; at < device_bytes; at += 200) {
    const std::size_t count = std::min<std::size_t>(200, device_bytes - at);
    body.assign(image_.device.begin() + static_cast<std::ptrdiff_t>(at),
                image_.device.begin() + static_cast<std::ptrdiff_t>(at + count));
    out.add(RecordType::device_state, body);
  }
  out.summary.full = full;
  out.summary.device_bytes = device_bytes;
  out.summary.captured_pages = out.summary.stored_pages;
  out.summary.cut_wall = WallTime{static_cast<std::int64_t>(epoch.value) * 1000};
  out.finish();
  return made;
}

Result<CommitReceipt> ship(EpochSession& session, const MadeEpoch& epoch) {
  for (const auto& record : epoch.records) {
    if (auto appended = session.append(record); !appended) {
      session.abandon();  // or what comes next would belong to it
      return fail(std::move(appended).error());
    }
  }
  return session.commit(epoch.end);
}

namespace {

std::string compare_block(const EpochImage& image, const ModelImage& model, std::uint16_t block) {
  const std::uint64_t pages = model.machine.layout.blocks[block].pages();
  std::vector<std::byte> page(kPageBytes);
  const auto stamp_of = [&](std::uint64_t n) {
    const auto found = model.pages.find(format::PageKey{BlockIndex{block}, PageNumber{n}}.packed());
    return found == model.pages.end() ? Stamp{0} : found->second;
  };
  for (std::uint64_t n = 0; n < pages; ++n) {
    if (auto read = image.read_page(BlockIndex{block}, PageNumber{n}, page); !read) {
      return read.error().message;
    }
    if (page != page_of(stamp_of(n))) return fmt::format("read_page: page {} differs", n);
  }
  std::vector<int> visits(pages);
  std::string trouble;
  const auto walked =
      image.for_each_page(BlockIndex{block}, [&](PageNumber n, const std::byte* data) -> Status {
        ++visits[n.value];
        const auto wanted = page_of(stamp_of(n.value));
        const std::vector<std::byte> zero(kPageBytes);
        if (std::memcmp(data == nullptr ? zero.data() : data, wanted.data(), kPageBytes) != 0) {
          trouble = fmt::format("for_each_page: page {} differs", n.value);
        }
        return {};
      });
  if (!walked) return walked.error().message;
  for (std::uint64_t n = 0; n < pages; ++n) {
    const bool held =
        model.pages.contains(format::PageKey{BlockIndex{block}, PageNumber{n}}.packed());
    if (visits[n] != (held ? 1 : 0)) return fmt::format("page {} visited {} times", n, visits[n]);
  }
  return trouble;
}

}  // namespace

std::string compare(const EpochImage& image, const ModelImage& model) {
  if (!(image.machine() == model.machine)) return "the machine differs";
  const auto device = image.device_state();
  if (!device) return device.error().message;
  if (*device != model.device) return "the device state differs";
  for (std::uint16_t block = 0; block < model.machine.layout.blocks.size(); ++block) {
    if (auto trouble = compare_block(image, model, block); !trouble.empty()) {
      return fmt::format("block {}: {}", block, trouble);
    }
  }
  return {};
}

}  // namespace vmshadow::test
