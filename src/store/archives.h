// The archives that one run of the archiver makes: a writer for each kind of tier, made when it is
// needed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "store/archive_writer.h"
#include "store/archiver.h"

namespace vmshadow::store {

class Archives {
 public:
  Archives(Archiver::Ground& ground, const std::vector<SegmentId>& sources,
           const ArchiveOptions& options, std::uint64_t expected_bytes)
      : ground_(ground), sources_(sources), options_(options), expected_bytes_(expected_bytes) {}

  ArchiveWriter& writer(TierKind kind) {
    auto& made = kind == TierKind::ssd ? ssd_ : hdd_;
    if (made == nullptr) {
      made = std::make_unique<ArchiveWriter>(
          ground_.catalog, ground_.files, ground_.clock,
          ArchiveWriter::Plan{kind, options_.segment_bytes, expected_bytes_, sources_,
                              ground_.states.records()});
    }
    return *made;
  }
  Status finish() {
    for (ArchiveWriter* made : {ssd_.get(), hdd_.get()}) {
      if (made != nullptr) VMSHADOW_TRY(made->finish());
    }
    return {};
  }
  void discard() {
    for (ArchiveWriter* made : {ssd_.get(), hdd_.get()}) {
      if (made != nullptr) made->discard();
    }
  }
  [[nodiscard]] std::vector<ArchiveWriter::Made> segments() const {
    std::vector<ArchiveWriter::Made> all;
    for (const ArchiveWriter* made : {ssd_.get(), hdd_.get()}) {
      if (made == nullptr) continue;
      all.insert(all.end(), made->segments().begin(), made->segments().end());
    }
    std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
    return all;
  }
  [[nodiscard]] std::uint64_t written_bytes() const {
    std::uint64_t bytes = 0;
    for (const ArchiveWriter* made : {ssd_.get(), hdd_.get()}) {
      if (made != nullptr) bytes += made->written_bytes();
    }
    return bytes;
  }

 private:
  Archiver::Ground& ground_;
  const std::vector<SegmentId>& sources_;
  const ArchiveOptions& options_;
  const std::uint64_t expected_bytes_;
  std::unique_ptr<ArchiveWriter> ssd_, hdd_;
};

}  // namespace vmshadow::store
