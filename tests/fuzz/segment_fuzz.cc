// A whole segment through recovery: it always ends, and every epoch it then lists has what it
// needs.
//
// The first byte says what follows: even, a segment's bytes; odd, a recipe of records that are then
// made with checksums that hold, for the fuzzer to get past them:
//
//   type (1, index into kTypes)  sequence (1)  who (1: VM, generation, epoch)  body bytes (le16)
//   body
//
// A mark without a body is made to be the right one for what stands before it.
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/assert.h"
#include "format/journal.h"
#include "store/batch_reader.h"
#include "store/recovery.h"
#include "store/segment_skeleton.h"

namespace {

using namespace vmshadow;
using format::RecordType;

/// New ones at the end: an index in a seed keeps its meaning.
constexpr std::array kTypes = {RecordType::machine,
                               RecordType::page_group,
                               RecordType::zero_pages,
                               RecordType::device_state,
                               RecordType::epoch_end,
                               RecordType::commit,
                               RecordType::grant,
                               RecordType::pad,
                               RecordType::hello,
                               RecordType::vm_state,
                               RecordType::segment_list,
                               RecordType::replace,
                               RecordType::archived_epoch,
                               RecordType::skeleton,
                               RecordType::seal,
                               RecordType::loss,
                               RecordType::sealed_machine,
                               RecordType::sealed_page_group,
                               RecordType::sealed_device_state,
                               RecordType::mark};
const std::array<std::string, 2> kNames = {"web1", "db"};

constexpr format::SegmentSalt kSalt{std::byte{7}};

std::vector<std::byte> cook(ByteSpan recipe) {
  std::vector<std::byte> segment(format::kSegmentHeadBytes);
  std::uint64_t begin = segment.size();
  while (recipe.size() >= 5) {
    const auto at = [&](std::size_t i) { return std::to_integer<unsigned>(recipe[i]); };
    const format::RecordHead head{kTypes[at(0) % kTypes.size()], at(1), vm_id(kNames[at(2) & 1]),
                                  Generation{at(2) >> 1 & 3}, Epoch{at(2) >> 3}};
    const std::size_t wanted = at(3) | at(4) << 8;
    const ByteSpan body = recipe.subspan(5, std::min(wanted, recipe.size() - 5));
    if (head.type == RecordType::mark && body.empty()) {
      const format::JournalPosition from{SegmentId{1}, SegmentOffset{begin}};
      const std::uint64_t chain = format::chain_records(0, ByteSpan(segment).subspan(begin));
      format::append_mark(segment, segment.size(), format::kSealBlockBytes,
                          {from, kSalt, chain, from});
      begin = segment.size();
    } else {
      format::append_record(segment, head, body);
      segment.resize(segment.size() + format::alignment_gap(segment.size()));
    }
    recipe = recipe.subspan(5 + body.size());
  }
  return segment;
}

void recover_all(ByteSpan segment, bool is_last) {
  store::Recovery recovery;
  recovery.index = std::make_shared<store::JournalIndex>();
  store::EpochAssembler assembler;
  store::IndexBuilder builder(*recovery.index, assembler);
  const store::MemorySource source(segment);
  builder.begin_segment(SegmentId{1});
  const auto salt = store::find_salt(SegmentId{1}, source);
  if (is_last) {
    store::recover_last_segment(SegmentId{1}, salt.value_or(kSalt), source, {}, recovery, builder);
  } else {
    store::recover_segment(SegmentId{1}, salt, source, {}, recovery, builder);
  }
  builder.finish();
  assembler.assemble(*recovery.index, builder.damage());
  for (const store::Damage& damage : builder.damage()) {
    VMSHADOW_ASSERT(!damage.text().empty());
  }
  VMSHADOW_ASSERT(is_last || !recovery.torn_tail);
  for (const VmInfo& vm : recovery.index->vms()) {
    for (const EpochInfo& epoch : vm.epochs) {
      if (vm_id(vm.name) != vm.id) break;  // only its id is known
      const auto chain = recovery.index->chain(vm.name, epoch.epoch);
      VMSHADOW_ASSERT(chain);
      const store::EpochIndex& full = *chain->front();
      VMSHADOW_ASSERT(full.machine != nullptr || full.places.machine);
      VMSHADOW_ASSERT(chain->back()->info.epoch == epoch.epoch);
    }
  }
}

/// The same bytes as an archive: by its skeleton if it has one, and record by record.
void read_archive(ByteSpan segment) {
  const store::MemorySource source(segment);
  store::EpochAssembler assembler;
  const auto add = [&](std::uint64_t offset, const format::RecordPrefix& prefix, ByteSpan front) {
    if (!store::EpochAssembler::takes(prefix.head.type)) return;
    const format::JournalPosition at{SegmentId{2}, SegmentOffset{offset}};
    if (!assembler.add_archived(at, prefix, front)) {
      assembler.add_archived_damage({at, 0, "malformed", {}, {}}, prefix);
    }
  };
  (void)store::visit_skeleton(source, SegmentId{2}, add);
  store::SegmentScanner scanner(source, format::kSegmentHeadBytes);
  while (true) {
    const store::ScanItem item = scanner.next();
    if (std::holds_alternative<store::EndOfSegment>(item)) break;
    if (const auto* record = std::get_if<store::GoodRecord>(&item)) {
      add(record->offset, record->prefix, record->body);
    }
  }
  store::JournalIndex index;
  std::vector<store::Damage> damage;
  assembler.assemble(index, damage);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const ByteSpan input = std::as_bytes(std::span(data + 1, size - 1));
  const std::vector<std::byte> cooked = data[0] % 2 == 1 ? cook(input) : std::vector<std::byte>();
  const ByteSpan segment = data[0] % 2 == 1 ? ByteSpan(cooked) : input;
  recover_all(segment, true);
  recover_all(segment, false);
  read_archive(segment);
  return 0;
}
