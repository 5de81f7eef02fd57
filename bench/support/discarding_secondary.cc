#include "support/discarding_secondary.h"

#include <nlohmann/json.hpp>

#include <cstring>
#include <thread>
#include <utility>

#include "base/endian.h"
#include "capture/release_vm.h"
#include "io/socket.h"
#include "qmp/commands.h"

namespace vmshadow::bench {
namespace {

using capture::ColoMessage;
using capture::MigrationStream;
using Event = MigrationStream::Event;

constexpr std::size_t kBufferBytes = std::size_t{1} << 20;
constexpr int kSocketBufferBytes = 64 << 20;
constexpr std::chrono::seconds kStall{10};
constexpr std::chrono::milliseconds kResumePatience{500};
const qmp::Json kCheckpointNow{{"x-checkpoint-delay", 4294967295U}};

}  // namespace

DiscardingSecondary::DiscardingSecondary(qmp::Session& session, const capture::VmEvents& events)
    : session_(session), events_(events), buffer_(kBufferBytes) {}

DiscardingSecondary::~DiscardingSecondary() { static_cast<void>(detach()); }

Result<Event> DiscardingSecondary::next() {
  for (;;) {
    pages_.clear();
    VMSHADOW_ASSIGN(const MigrationStream::Step step,
                    stream_.parse(ByteSpan(buffer_).subspan(parsed_, filled_ - parsed_), pages_));
    parsed_ += step.consumed;
    if (step.event != Event::need_more) return step.event;
    std::memmove(buffer_.data(), buffer_.data() + parsed_, filled_ - parsed_);
    filled_ -= parsed_;
    parsed_ = 0;
    VMSHADOW_ASSIGN(const std::size_t got,
                    io::read_some(fd_.get(), MutableByteSpan(buffer_).subspan(filled_),
                                  io::deadline_after(kStall)));
    if (got == 0) return fail(Errc::closed, "QEMU closed its migration stream");
    filled_ += got;
  }
}

Status DiscardingSecondary::expect(Event wanted) {
  VMSHADOW_ASSIGN(const Event event, next());
  if (event != wanted) return fail(Errc::protocol, "QEMU's checkpoint is out of order");
  return {};
}

Status DiscardingSecondary::send(std::initializer_list<ColoMessage> messages) {
  for (const ColoMessage message : messages) {
    const be32 word(static_cast<std::uint32_t>(message));
    VMSHADOW_TRY(
        io::write_all(fd_.get(), std::as_bytes(std::span(&word, 1)), io::deadline_after(kStall)));
  }
  return {};
}

Status DiscardingSecondary::attach() {
  VMSHADOW_TRY(qmp::migrate_set_capabilities(session_, {{"x-colo", true}, {"events", true}}));
  VMSHADOW_TRY(qmp::migrate_set_parameters(
      session_, {{"max-bandwidth", std::uint64_t{1} << 50}, {"x-checkpoint-delay", 4294967295U}}));
  VMSHADOW_ASSIGN(auto pair, io::socket_pair());
  io::set_socket_buffers(pair.first.get(), kSocketBufferBytes);
  io::set_socket_buffers(pair.second.get(), kSocketBufferBytes);
  VMSHADOW_TRY(qmp::getfd(session_, "floor", pair.second.get()));
  pair.second.reset();
  fd_ = std::move(pair.first);
  attached_ = true;
  VMSHADOW_TRY(qmp::migrate(session_, "fd:floor"));
  VMSHADOW_TRY(expect(Event::layout));
  VMSHADOW_TRY(expect(Event::device_tail));
  for (;;) {
    VMSHADOW_ASSIGN(const qmp::MigrationInfo info, qmp::query_migrate(session_));
    if (info.status == "colo") break;
    if (!info.active()) return fail(Errc::protocol, "QEMU did not enter COLO: " + info.error);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  // What has arrived by now is the whole device tail.
  for (;;) {
    pages_.clear();
    VMSHADOW_TRY(stream_.parse(ByteSpan(buffer_).subspan(parsed_, filled_ - parsed_), pages_));
    parsed_ = filled_ = 0;
    auto got = io::read_some(fd_.get(), buffer_, io::deadline_after({}));
    if (!got && got.error().code == Errc::timed_out) break;
    if (!got) return fail(std::move(got).error());
    filled_ = *got;
  }
  VMSHADOW_TRY(stream_.end_initial());
  return send({ColoMessage::checkpoint_ready});
}

Result<DiscardingSecondary::Epoch> DiscardingSecondary::take_epoch() {
  Epoch epoch;
  const std::uint64_t stops_before = events_.stops();
  const std::uint64_t pages_before = stream_.pages_seen();
  VMSHADOW_TRY(qmp::migrate_set_parameters(session_, kCheckpointNow));
  VMSHADOW_TRY(expect(Event::request));
  VMSHADOW_TRY(send({ColoMessage::checkpoint_reply}));
  VMSHADOW_TRY(expect(Event::cut));
  VMSHADOW_TRY(send({ColoMessage::vmstate_received, ColoMessage::vmstate_loaded}));
  VMSHADOW_TRY(expect(Event::ram_done));
  VMSHADOW_TRY(expect(Event::device_done));
  epoch.pages = stream_.pages_seen() - pages_before;
  epoch.pause = events_.wait_for_pause(stops_before, kResumePatience);
  return epoch;
}

Status DiscardingSecondary::detach() {
  if (!std::exchange(attached_, false)) return {};
  fd_.reset();
  stream_ = {};
  parsed_ = filled_ = 0;
  VMSHADOW_TRY(capture::release_vm(session_));
  return qmp::migrate_set_capabilities(session_, {{"x-colo", false}});
}

}  // namespace vmshadow::bench
