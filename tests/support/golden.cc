#include "support/golden.h"

#include "crypt/sealed_record.h"
#include "format/epoch_records.h"
#include "format/journal.h"
#include "format/skeleton.h"
#include "format/store_state.h"
#include "format/wire.h"

namespace vmshadow::test {

using format::RecordType;

namespace {

using Bytes = std::vector<std::byte>;

constexpr Generation kGeneration{3};
constexpr Epoch kEpoch{42};

Bytes record(RecordType type, std::uint32_t sequence, const Bytes& body) {
  Bytes out;
  format::append_record(out, {type, sequence, vm_id("web1"), kGeneration, kEpoch}, body);
  return out;
}

template <class T>
Bytes body_of(const T& value) {
  Bytes body;
  format::append_body(body, value);
  return body;
}

Bytes machine_body() {
  MachineDescription machine;
  machine.json = R"({"machine":"pc-q35-7.2"})";
  machine.configuration = {std::byte{0}, std::byte{0}, std::byte{0}, std::byte{0}};
  machine.layout = {{{"pc.ram", 16 * kPageBytes}, {"pc.bios", 2 * kPageBytes}}, 2, 0, 4};
  Bytes body;
  format::append_machine_body(body, machine);
  return body;
}

/// A group of one page.
Bytes group_body(format::Codec codec, PageNumber number, const Bytes& page, const Bytes& payload) {
  const format::PageKey key{BlockIndex{0}, number};
  const std::uint64_t checksum = format::page_checksum(page.data());
  Bytes body;
  format::append_page_group_body(body, codec, {&key, 1}, {&checksum, 1}, payload);
  return body;
}

Bytes raw_group_body() {
  Bytes page;
  for (std::size_t i = 0; i < kPageBytes; ++i) page.push_back(static_cast<std::byte>(i % 251));
  return group_body(format::Codec::raw, PageNumber{5}, page, page);
}

/// One lz4 block by hand: a literal 0xa5, then that byte repeated, then five literals to end with.
Bytes lz4_group_body() {
  Bytes block = {std::byte{0x1f}, std::byte{0xa5}, std::byte{0x01}, std::byte{0x00}};
  // Of the page's 4096 bytes: 1 literal, the match, and 5 last literals; a match length starts at
  // 4+15.
  std::size_t rest = kPageBytes - 1 - 5 - 4 - 15;
  for (; rest >= 255; rest -= 255) block.push_back(std::byte{0xff});
  block.push_back(static_cast<std::byte>(rest));
  block.push_back(std::byte{0x50});
  block.insert(block.end(), 5, std::byte{0xa5});
  return group_body(format::Codec::lz4, PageNumber{6}, Bytes(kPageBytes, std::byte{0xa5}), block);
}

Bytes zero_pages_body() {
  const std::vector<format::ZeroRun> runs = {{{BlockIndex{0}, PageNumber{8}}, 4},
                                             {{BlockIndex{1}, PageNumber{0}}, 2}};
  Bytes body;
  format::append_zero_pages_body(body, runs);
  return body;
}

/// A whole full epoch in order, its epoch_end last, and its chain.
std::vector<Bytes> epoch_records(std::uint64_t& chain) {
  std::vector<Bytes> records = {
      record(RecordType::machine, 0, machine_body()),
      record(RecordType::page_group, 1, raw_group_body()),
      record(RecordType::page_group, 2, lz4_group_body()),
      record(RecordType::zero_pages, 3, zero_pages_body()),
      record(RecordType::device_state, 4, Bytes(3, std::byte{0x77})),
  };
  format::EpochSummary summary;
  for (const Bytes& bytes : records) {
    summary.chain =
        format::extend_chain(summary.chain, format::decode_prefix(bytes)->prefix_checksum);
    summary.record_bytes += bytes.size();
  }
  summary.record_count = 5;
  summary.full = true;
  summary.cut_wall = WallTime{1'700'000'000'000'000'000};
  summary.captured_pages = 18;
  summary.stored_pages = 8;
  summary.zero_pages = 6;
  summary.device_bytes = 3;
  chain = summary.chain;
  Bytes body;
  format::append_epoch_end_body(body, summary);
  records.push_back(record(RecordType::epoch_end, 5, body));
  return records;
}

/// A plain golden record sealed with the golden key and the nonce 80 81 82 … 97.
Bytes sealed(const Bytes& plain) {
  const Bytes bytes = golden_key();
  const auto secret = crypt::SecretKey::copy_of(ByteSpan(bytes).first<crypt::kKeyBytes>());
  const auto key = crypt::VmKey::derive(*secret, vm_id("web1"));
  crypt::Nonce nonce;
  for (std::size_t i = 0; i < nonce.size(); ++i) nonce[i] = static_cast<std::byte>(0x80 + i);
  const auto prefix = format::decode_prefix(plain);
  Bytes out;
  crypt::seal_record(*key, nonce, prefix->head, ByteSpan(plain).subspan(format::kRecordPrefixBytes),
                     out);
  return out;
}

}  // namespace

std::vector<std::byte> golden_key() {
  std::vector<std::byte> key;
  for (std::size_t i = 0; i < crypt::kKeyBytes; ++i) key.push_back(static_cast<std::byte>(i));
  return key;
}

std::map<std::string, std::vector<std::byte>> golden_files() {
  std::map<std::string, Bytes> files;
  std::uint64_t chain = 0;
  const std::vector<Bytes> epoch = epoch_records(chain);
  const format::JournalPosition durable{SegmentId{1}, SegmentOffset{format::kSegmentHeadBytes}};
  files["machine.bin"] = epoch[0];
  files["page_group_raw.bin"] = epoch[1];
  files["page_group_lz4.bin"] = epoch[2];
  files["zero_pages.bin"] = epoch[3];
  files["device_state.bin"] = epoch[4];
  files["epoch_end.bin"] = epoch[5];
  files["sealed_machine.bin"] = sealed(epoch[0]);
  files["sealed_page_group.bin"] = sealed(epoch[2]);
  files["sealed_device_state.bin"] = sealed(epoch[4]);
  const WallTime wall{1'700'000'000'004'000'000};
  files["commit.bin"] =
      record(RecordType::commit, 0, body_of(format::Commit{wall, chain, durable}));
  files["grant.bin"] = record(RecordType::grant, 0, body_of(format::Grant{wall, "web1", durable}));
  format::append_record(files["pad.bin"], {RecordType::pad, 0, {}, {}, {}},
                        body_of(format::Pad{durable}));
  format::VmState state;
  state.version = 7;
  state.vm_name = "web1";
  state.next_epoch = Epoch{43};
  state.window_s = 600;
  state.minutely_s = 3600;
  state.hourly_s = 86400;
  state.daily_s = 2592000;
  state.kept = {{Epoch{12}, Epoch{12}}, {Epoch{30}, Epoch{42}}};
  state.pins = {Epoch{12}};
  state.durable = durable;
  files["vm_state.bin"] = record(RecordType::vm_state, 0, body_of(state));
  const format::SegmentEntry archive{SegmentId{2}, 1048576, format::SegmentKind::archive};
  const format::SegmentEntry journal{SegmentId{3}, 0, format::SegmentKind::journal};
  format::append_record(files["segment_list.bin"], {RecordType::segment_list, 0, {}, {}, {}},
                        body_of(format::SegmentList{{archive, journal}}));
  format::append_record(files["replace.bin"], {RecordType::replace, 0, {}, {}, {}},
                        body_of(format::Replace{{SegmentId{1}}, {archive}, durable}));
  files["archived_epoch.bin"] = record(
      RecordType::archived_epoch, 0,
      body_of(format::ArchivedEpoch{wall, WallTime{1'700'000'000'000'000'000}, 8, 5000, 3, true}));
  files["loss.bin"] = record(RecordType::loss, 0,
                             body_of(format::Loss{{SegmentId{1}, SegmentOffset{4096}},
                                                  120,
                                                  format::LossKind::own,
                                                  "record body fails its checksum"}));
  files["hello.bin"] = record(RecordType::hello, 0, body_of(format::Hello{1, 1, 0, 4096, "web1"}));
  files["welcome.bin"] =
      record(RecordType::welcome, 0, body_of(format::Welcome{1, 0, kGeneration, kEpoch}));
  files["ack.bin"] =
      record(RecordType::ack, 0, body_of(format::Ack{wall, std::chrono::microseconds{1500}}));
  files["refusal.bin"] =
      record(RecordType::refusal, 0, body_of(format::Refusal{Errc::in_use, "VM is taken"}));
  files["base_hashes.bin"] =
      record(RecordType::base_hashes, 0,
             body_of(format::BaseHashes{
                 {{{BlockIndex{0}, PageNumber{6}}, {0x0123456789abcdef, 0xfedcba9876543210}}}}));
  files["base_end.bin"] = record(RecordType::base_end, 0, body_of(format::BaseEnd{1, {}}));
  files["ping.bin"] = record(RecordType::ping, 0, {});

  format::StoreId store{};
  for (std::size_t i = 0; i < store.size(); ++i) store[i] = static_cast<std::byte>(i);
  format::SegmentSalt salt{};
  for (std::size_t i = 0; i < salt.size(); ++i) salt[i] = static_cast<std::byte>(0x20 + i);
  Bytes& segment = files["segment.bin"];
  segment =
      format::encode_segment_head({store, SegmentId{1}, wall, format::SegmentKind::journal, salt});
  std::vector<Bytes> all = epoch;
  all.insert(all.begin(), files["grant.bin"]);
  all.push_back(files["commit.bin"]);
  format::SkeletonWriter skeleton;
  for (const Bytes& bytes : all) {
    skeleton.add(segment.size(), bytes);
    format::append_bytes(segment, bytes);
    segment.resize(segment.size() + format::alignment_gap(segment.size()));
  }
  format::Mark mark{durable, salt, 0, durable};
  mark.chain = format::chain_records(0, ByteSpan(segment).subspan(format::kSegmentHeadBytes));
  format::append_record(files["mark.bin"], {RecordType::mark, 0, {}, {}, {}}, body_of(mark));
  format::append_mark(segment, segment.size(), format::kSealBlockBytes, mark);
  format::append_bytes(
      segment, format::encode_segment_end(SegmentId{1}, segment.size(), skeleton, durable, salt));
  return files;
}

}  // namespace vmshadow::test
