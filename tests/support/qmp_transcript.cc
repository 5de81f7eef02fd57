#include "support/qmp_transcript.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cstring>
#include <fstream>
#include <utility>

#include "base/assert.h"
#include "io/socket.h"
#include "qmp/message_stream.h"

namespace vmshadow::test {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kFromQemu = "{\"s\": ";
constexpr std::string_view kFromClient = "{\"c\": ";

io::Deadline patience() { return io::deadline_after(std::chrono::seconds(30)); }

/// The next message of `fd`; a null at the end of the stream.
Result<Json> receive(int fd, qmp::MessageStream& stream) {
  for (;;) {
    if (auto message = stream.next()) return *std::move(message);
    std::array<std::byte, 4096> buffer;
    VMSHADOW_ASSIGN(const std::size_t got, io::read_some(fd, buffer, patience()));
    if (got == 0) return Json();
    VMSHADOW_TRY(stream.feed(ByteSpan(buffer.data(), got)));
  }
}

std::pair<UniqueFd, UniqueFd> make_pair() {
  auto pair = io::socket_pair();
  VMSHADOW_ASSERT(pair);
  return *std::move(pair);
}

}  // namespace

Result<std::vector<TranscriptLine>> read_transcript(const std::string& path) {
  std::ifstream file(path);
  if (!file) return fail(Errc::not_found, fmt::format("{}: no such transcript; record it", path));
  std::vector<TranscriptLine> lines;
  for (std::string line; std::getline(file, line);) {
    const bool from_qemu = line.starts_with(kFromQemu);
    if ((!from_qemu && !line.starts_with(kFromClient)) || !Json::accept(line)) {
      return fail(Errc::corrupt, fmt::format("{}:{}: not a line of a transcript; record it again",
                                             path, lines.size() + 1));
    }
    lines.push_back({from_qemu, line.substr(kFromQemu.size(), line.size() - kFromQemu.size() - 1)});
  }
  if (lines.empty()) return fail(Errc::corrupt, path + ": an empty transcript; record it again");
  return lines;
}

// ---- player

TranscriptPlayer::TranscriptPlayer(std::vector<TranscriptLine> lines) : lines_(std::move(lines)) {
  std::tie(fd_, client_) = make_pair();
  thread_ = std::thread([this] {
    result_ = play();
    fd_.reset();
  });
}

TranscriptPlayer::~TranscriptPlayer() {
  if (thread_.joinable()) thread_.join();
}

Status TranscriptPlayer::play() {
  qmp::MessageStream stream(std::size_t{1} << 20);
  for (const TranscriptLine& line : lines_) {
    if (line.from_qemu) {
      const std::string text = line.text + "\r\n";
      VMSHADOW_TRY(io::write_all(fd_.get(), std::as_bytes(std::span(text)), patience()));
      continue;
    }
    VMSHADOW_ASSIGN(const Json heard, receive(fd_.get(), stream));
    if (heard != Json::parse(line.text)) {
      return fail(Errc::protocol, fmt::format("expected {}, heard {}", line.text, heard.dump()));
    }
  }
  return {};
}

Status TranscriptPlayer::finish() {
  thread_.join();
  return result_;
}

// ---- recorder

TranscriptRecorder::TranscriptRecorder(UniqueFd monitor) : monitor_(std::move(monitor)) {
  std::tie(fd_, client_) = make_pair();
  thread_ = std::thread([this] { relay(); });
}

TranscriptRecorder::~TranscriptRecorder() {
  ::shutdown(fd_.get(), SHUT_RDWR);
  if (thread_.joinable()) thread_.join();
}

void TranscriptRecorder::relay() {
  for (;;) {
    pollfd both[] = {{fd_.get(), POLLIN, 0}, {monitor_.get(), POLLIN, 0}};
    ::poll(both, 2, -1);
    // QEMU first: what it said before a command came is not an answer to it.
    if (both[1].revents != 0 && !pass_on(true)) break;
    if (both[0].revents != 0 && !pass_on(false)) break;
  }
  ::shutdown(fd_.get(), SHUT_RDWR);
  ::shutdown(monitor_.get(), SHUT_RDWR);
}

bool TranscriptRecorder::pass_on(bool from_qemu) {
  const int from = from_qemu ? monitor_.get() : fd_.get();
  const int to = from_qemu ? fd_.get() : monitor_.get();
  std::array<char, 16 * 1024> buffer;
  iovec part{buffer.data(), buffer.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t got = ::recvmsg(from, &message, MSG_CMSG_CLOEXEC);
  if (got <= 0) return false;
  UniqueFd passed;
  if (const cmsghdr* header = CMSG_FIRSTHDR(&message);
      header != nullptr && header->cmsg_type == SCM_RIGHTS) {
    int number = -1;
    std::memcpy(&number, CMSG_DATA(header), sizeof number);
    passed.reset(number);
  }
  const std::string_view text(buffer.data(), static_cast<std::size_t>(got));
  std::string& line = unfinished_[from_qemu ? 1 : 0];
  for (const char c : text) {
    if (c == '\n') {
      text_ += fmt::format("{}{}}}\n", from_qemu ? kFromQemu : kFromClient, line);
      line.clear();
    } else if (c != '\r') {
      line += c;
    }
  }
  const ByteSpan bytes = std::as_bytes(std::span(text));
  return passed ? io::write_with_fd(to, bytes, passed.get(), patience()).has_value()
                : io::write_all(to, bytes, patience()).has_value();
}

Status TranscriptRecorder::finish(const std::string& path) {
  thread_.join();
  std::ofstream file(path, std::ios::trunc);
  file << text_;
  if (!file.flush()) return fail(Errc::io, fmt::format("{}: cannot be written", path));
  return {};
}

}  // namespace vmshadow::test
