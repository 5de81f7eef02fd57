#include "replay/stream_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <vector>

#include "base/endian.h"
#include "base/migration_format.h"

namespace vmshadow::replay {
namespace {

using namespace migration_format;  // NOLINT(google-build-using-namespace): constants alone

class StreamWriter {
 public:
  StreamWriter(const EpochImage& image, const ByteSink& sink, const StreamProgress& progress)
      : image_(image),
        layout_(image.machine().layout),
        sink_(sink),
        progress_(progress),
        pages_total_(layout_.total_bytes() / kPageBytes) {
    buffer_.reserve(kStreamPieceBytes);
  }

  Result<StreamStats> write() {
    // First of all, so that a damaged epoch is noticed before QEMU has seen a byte.
    VMSHADOW_ASSIGN(const std::vector<std::byte> device_state, image_.device_state());
    VMSHADOW_TRY(check(device_state));
    VMSHADOW_TRY(put(be32(kStreamMagic)));
    VMSHADOW_TRY(put(be32(kStreamVersion)));
    VMSHADOW_TRY(put_byte(kConfiguration));
    VMSHADOW_TRY(put_bytes(image_.machine().configuration));
    VMSHADOW_TRY(write_block_list());
    VMSHADOW_TRY(write_pages());
    VMSHADOW_TRY(put_bytes(device_state));
    VMSHADOW_TRY(put_byte(kVmDescription));
    VMSHADOW_TRY(put(be32(0)));
    VMSHADOW_TRY(flush());
    return stats_;
  }

 private:
  [[nodiscard]] Status check(ByteSpan device_state) const {
    if (device_state.empty() || device_state.back() != std::byte{0}) {
      return fail(Errc::corrupt, "the epoch's device state lacks its end");
    }
    if (image_.machine().configuration.size() < sizeof(be32)) {
      return fail(Errc::corrupt, "the recorded machine has no stream configuration");
    }
    for (const RamBlock& block : layout_.blocks) {
      if (block.name.empty() || block.name.size() > kRamBlockNameBytesMax) {
        return fail(Errc::corrupt, "a RAM block's name does not fit a stream");
      }
    }
    return {};
  }

  Status write_block_list() {
    VMSHADOW_TRY(put_byte(kSectionStart));
    VMSHADOW_TRY(put(be32(layout_.ram_section_id)));
    VMSHADOW_TRY(put_name("ram"));
    VMSHADOW_TRY(put(be32(layout_.ram_section_instance)));
    VMSHADOW_TRY(put(be32(layout_.ram_section_version)));
    VMSHADOW_TRY(put(be64(layout_.total_bytes() | kRamMemSize)));
    for (const RamBlock& block : layout_.blocks) {
      VMSHADOW_TRY(put_name(block.name));
      VMSHADOW_TRY(put(be64(block.bytes)));
    }
    return end_section();
  }

  Status write_pages() {
    VMSHADOW_TRY(put_byte(kSectionEnd));
    VMSHADOW_TRY(put(be32(layout_.ram_section_id)));
    for (std::size_t i = 0; i < layout_.blocks.size(); ++i) {
      VMSHADOW_TRY(write_block(BlockIndex{static_cast<std::uint16_t>(i)}));
    }
    return end_section();
  }

  /// The pages the image holds as it visits them, then the others, which are zero.
  Status write_block(BlockIndex index) {
    const RamBlock& block = layout_.blocks[index.value];
    std::vector<bool> written(block.pages());
    VMSHADOW_TRY(image_.for_each_page(index, [&](PageNumber page, const std::byte* data) -> Status {
      if (page.value >= written.size()) {
        return fail(Errc::corrupt, fmt::format("the epoch holds page {} of '{}', which has "
                                               "{} pages",
                                               page.value, block.name, written.size()));
      }
      if (written[page.value]) {
        return fail(Errc::corrupt,
                    fmt::format("the epoch holds page {} of '{}' twice", page.value, block.name));
      }
      written[page.value] = true;
      return write_page(index, page, data);
    }));
    for (std::size_t page = 0; page < written.size(); ++page) {
      if (!written[page]) VMSHADOW_TRY(write_page(index, PageNumber{page}, nullptr));
    }
    return {};
  }

  Status write_page(BlockIndex index, PageNumber page, const std::byte* data) {
    const bool same_block = last_block_ == index;
    last_block_ = index;
    VMSHADOW_TRY(put(be64((page.value * kPageBytes) | (data == nullptr ? kRamZero : kRamPage) |
                          (same_block ? kRamContinue : 0))));
    if (!same_block) VMSHADOW_TRY(put_name(layout_.blocks[index.value].name));
    ++stats_.pages;
    if (data != nullptr) return put_bytes(ByteSpan(data, kPageBytes));
    ++stats_.zero_pages;
    return put_byte(0);
  }

  Status end_section() {
    VMSHADOW_TRY(put(be64(kRamEos)));
    VMSHADOW_TRY(put_byte(kSectionFooter));
    return put(be32(layout_.ram_section_id));
  }

  template <class Integer>
  Status put(const Integer& value) {
    return put_bytes(ByteSpan(reinterpret_cast<const std::byte*>(&value), sizeof value));
  }
  Status put_byte(std::uint8_t value) { return put(value); }
  Status put_name(std::string_view name) {
    VMSHADOW_TRY(put_byte(static_cast<std::uint8_t>(name.size())));
    return put_bytes(std::as_bytes(std::span(name)));
  }
  Status put_bytes(ByteSpan bytes) {
    while (!bytes.empty()) {
      const ByteSpan piece =
          bytes.first(std::min(bytes.size(), kStreamPieceBytes - buffer_.size()));
      buffer_.insert(buffer_.end(), piece.begin(), piece.end());
      bytes = bytes.subspan(piece.size());
      if (buffer_.size() == kStreamPieceBytes) VMSHADOW_TRY(flush());
    }
    return {};
  }
  Status flush() {
    if (buffer_.empty()) return {};
    VMSHADOW_TRY(sink_(buffer_));
    stats_.bytes += buffer_.size();
    buffer_.clear();
    if (progress_) progress_(stats_.pages, pages_total_);
    return {};
  }

  const EpochImage& image_;
  const RamLayout& layout_;
  const ByteSink& sink_;
  const StreamProgress& progress_;
  const std::uint64_t pages_total_;
  std::optional<BlockIndex> last_block_;
  std::vector<std::byte> buffer_;
  StreamStats stats_;
};

}  // namespace

Result<StreamStats> write_stream(const EpochImage& image, const ByteSink& sink,
                                 const StreamProgress& progress) {
  return StreamWriter(image, sink, progress).write();
}

}  // namespace vmshadow::replay
