#include "ship/base_exchange.h"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <utility>

#include "format/epoch_records.h"
#include "format/wire.h"

namespace vmshadow::ship {
namespace {

using format::RecordType;

constexpr std::chrono::milliseconds kProgressEvery{1000};
constexpr std::chrono::milliseconds kCancelPoll{100};

/// Gathers hashes into records and sends each when it is full.
class HashSender {
 public:
  HashSender(RecordChannel& channel, const format::RecordHead& head,
             std::chrono::milliseconds silence)
      : channel_(channel), head_(head), silence_(silence) {}

  Status add(format::PageKey key, PageHash hash) {
    hashes_.pages.push_back({key, hash});
    ++sent_;
    return hashes_.pages.size() < format::kBaseHashesMax ? Status() : flush();
  }
  Status flush() {
    if (hashes_.pages.empty()) return {};
    VMSHADOW_TRY(send(RecordType::base_hashes, hashes_));
    hashes_.pages.clear();
    return {};
  }
  template <class Body>
  Status send(RecordType type, const Body& body) {
    out_.clear();
    const std::size_t start = format::begin_record(out_);
    format::append_body(out_, body);
    return finish(type, start);
  }
  Status send_machine(const MachineDescription& machine) {
    out_.clear();
    const std::size_t start = format::begin_record(out_);
    format::append_machine_body(out_, machine);
    return finish(RecordType::machine, start);
  }
  [[nodiscard]] std::uint64_t sent() const { return sent_; }
  /// Whether the link, not the image, was what failed.
  [[nodiscard]] bool link_failed() const { return link_failed_; }

 private:
  Status finish(RecordType type, std::size_t start) {
    format::RecordHead head = head_;
    head.type = type;
    format::finish_record(out_, start, head);
    Status sent = channel_.write(out_, io::deadline_after(silence_));
    link_failed_ = !sent;
    return sent;
  }

  RecordChannel& channel_;
  const format::RecordHead head_;
  const std::chrono::milliseconds silence_;
  format::BaseHashes hashes_;
  std::vector<std::byte> out_;
  std::uint64_t sent_ = 0;
  bool link_failed_ = false;
};

/// Puts an answer together.
class BaseBuilder {
 public:
  explicit BaseBuilder(const BaseRequest& request) : request_(request) {}

  Status take_machine(const format::RecordHead& head, ByteSpan body) {
    if (known_) return fail(Errc::protocol, "the store sent two machine records");
    if (head.generation >= request_.granted || head.generation == Generation{}) {
      return fail(Errc::protocol,
                  fmt::format("the store offers an epoch of generation {} to build on, in "
                              "generation {}",
                              head.generation.value, request_.granted.value));
    }
    VMSHADOW_ASSIGN(MachineDescription machine, format::decode_machine(body));
    if (machine.layout.total_bytes() > request_.ram_bytes_max) {
      return fail(Errc::protocol,
                  fmt::format("the store says that the VM had {} bytes of RAM, more than this host "
                              "can have",
                              machine.layout.total_bytes()));
    }
    known_.emplace(delta::KnownEpoch{head.epoch, head.generation, std::move(machine), {}});
    for (const RamBlock& block : known_->machine.layout.blocks) {
      known_->hashes.emplace_back(block.pages());
      pages_ += block.pages();
    }
    return {};
  }
  Status take(const format::BaseHashes& hashes) {
    if (!known_) return fail(Errc::protocol, "the store sent page hashes before the machine");
    for (const format::BaseHashes::Page& page : hashes.pages) {
      const std::size_t block = page.key.block.value;
      if (block >= known_->hashes.size() || page.key.page.value >= known_->hashes[block].size()) {
        return fail(Errc::protocol, "the store sent the hash of a page that the VM has not");
      }
      known_->hashes[block][page.key.page.value] = page.hash;
    }
    received_ += hashes.pages.size();
    return {};
  }
  Result<BaseAnswer> finish(const format::BaseEnd& end) && {
    if (!end.why_not.empty()) return BaseAnswer{std::nullopt, end.why_not};
    if (!known_ || end.data_pages != received_) {
      return fail(Errc::protocol,
                  fmt::format("the store sent {} page hashes and says that there are {}", received_,
                              end.data_pages));
    }
    return BaseAnswer{std::move(known_), {}};
  }
  [[nodiscard]] BaseProgress progress() const { return {received_, pages_}; }

 private:
  const BaseRequest& request_;
  std::optional<delta::KnownEpoch> known_;
  std::uint64_t pages_ = 0;
  std::uint64_t received_ = 0;
};

/// Waits until a record begins to arrive.
Status wait_for_record(const RecordChannel& channel, const BaseRequest& request) {
  const auto deadline = io::deadline_after(request.silence);
  while (true) {
    if (request.cancelled && request.cancelled()) {
      return fail(Errc::cancelled, "told to stop while the store was asked what it has");
    }
    if (channel.in_record()) break;
    auto ready =
        io::wait_for(channel.fd(), POLLIN, std::min(deadline, io::deadline_after(kCancelPoll)));
    if (ready) break;
    if (ready.error().code != Errc::timed_out) return ready;
    if (io::Deadline::clock::now() >= deadline) {
      return fail(Errc::timed_out, fmt::format("the store has not said what it has for {} s",
                                               request.silence.count() / 1000));
    }
  }
  return {};
}

}  // namespace

Result<bool> send_base(RecordChannel& channel, const VmId& vm, const EpochImage& image,
                       const PageHasher& hasher, std::chrono::milliseconds silence) {
  const EpochInfo& info = image.info();
  HashSender sender(channel, {RecordType::base_hashes, 0, vm, info.generation, info.epoch},
                    silence);
  VMSHADOW_TRY(sender.send_machine(image.machine()));
  Status read;
  for (std::uint16_t block = 0; block < image.machine().layout.blocks.size() && read; ++block) {
    read = image.for_each_page(BlockIndex{block},
                               [&](PageNumber page, const std::byte* data) -> Status {
                                 if (data == nullptr) return {};
                                 return sender.add({BlockIndex{block}, page}, hasher.hash(data));
                               });
  }
  if (read) read = sender.flush();
  if (sender.link_failed()) return fail(std::move(read).error());
  if (!read) {
    VMSHADOW_TRY(sender.send(RecordType::base_end, format::BaseEnd{0, read.error().message}));
    return false;
  }
  VMSHADOW_TRY(sender.send(RecordType::base_end, format::BaseEnd{sender.sent(), {}}));
  return true;
}

Status send_no_base(RecordChannel& channel, const VmId& vm, const std::string& why,
                    std::chrono::milliseconds silence) {
  return HashSender(channel, {RecordType::base_end, 0, vm, {}, {}}, silence)
      .send(RecordType::base_end, format::BaseEnd{0, why});
}

Result<BaseAnswer> fetch_base(RecordChannel& channel, const BaseRequest& request,
                              const PageHasher& hasher) {
  format::BaseQuery query;
  const ByteSpan secret = hasher.secret();
  std::copy(secret.begin(), secret.end(), query.secret.begin());
  std::vector<std::byte> out;
  const std::size_t start = format::begin_record(out);
  format::append_body(out, query);
  format::finish_record(out, start, {RecordType::base_query, 0, request.vm, request.granted, {}});
  VMSHADOW_TRY(channel.write(out, io::deadline_after(request.silence)));

  BaseBuilder builder(request);
  auto next_report = io::deadline_after(kProgressEvery);
  for (;;) {
    VMSHADOW_TRY(wait_for_record(channel, request));
    VMSHADOW_ASSIGN(const RecordChannel::Record record,
                    channel.read(io::deadline_after(request.silence)));
    const format::RecordHead& head = record.prefix.head;
    if (head.vm != request.vm) return fail(Errc::protocol, "a record of another VM");
    switch (head.type) {
      case RecordType::machine:
        VMSHADOW_TRY(builder.take_machine(head, record.body()));
        break;
      case RecordType::base_hashes: {
        VMSHADOW_ASSIGN(const auto hashes, format::decode_base_hashes(record.body()));
        VMSHADOW_TRY(builder.take(hashes));
        break;
      }
      case RecordType::base_end: {
        VMSHADOW_ASSIGN(const auto end, format::decode_base_end(record.body()));
        return std::move(builder).finish(end);
      }
      default:
        return fail(refusal_or_unexpected(record));
    }
    if (request.on_progress && io::Deadline::clock::now() >= next_report) {
      next_report = io::deadline_after(kProgressEvery);
      request.on_progress(builder.progress());
    }
  }
}

}  // namespace vmshadow::ship
