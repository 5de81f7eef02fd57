#include "app/control_socket.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "io/socket.h"

namespace vmshadow::app {
namespace {

constexpr int kBacklog = 16;

std::string full_path(const std::string& directory) { return directory + "/" + kControlSocketName; }

/// The socket's path, in a form that fits an address as long as this object lives.
class SocketPath {
 public:
  static Result<SocketPath> of(const std::string& directory) {
    SocketPath path;
    path.text_ = full_path(directory);
    if (path.text_.size() < sizeof(sockaddr_un::sun_path)) return path;
    path.directory_.reset(::open(directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!path.directory_) return fail_errno(errno, fmt::format("opening '{}'", directory));
    path.text_ = fmt::format("/proc/self/fd/{}/{}", path.directory_.get(), kControlSocketName);
    return path;
  }
  [[nodiscard]] const std::string& text() const { return text_; }
  [[nodiscard]] sockaddr_un address() const {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, text_.c_str(), text_.size() + 1);
    return address;
  }

 private:
  std::string text_;
  UniqueFd directory_;
};

Result<UniqueFd> listen_in(const std::string& directory) {
  const std::string what = fmt::format("listening on '{}'", full_path(directory));
  VMSHADOW_ASSIGN(const SocketPath path, SocketPath::of(directory));
  struct stat there {};
  if (::lstat(path.text().c_str(), &there) == 0) {
    if (!S_ISSOCK(there.st_mode)) {
      return fail(Errc::already_exists,
                  fmt::format("'{}' is no socket: remove it", full_path(directory)));
    }
    ::unlink(path.text().c_str());
  }
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return fail_errno(errno, what);
  // A socket's file gets the mode the socket has when it is bound: there is no moment at which
  // others could connect.
  if (::fchmod(fd.get(), 0600) != 0) return fail_errno(errno, what);
  const sockaddr_un address = path.address();
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return fail_errno(errno, what);
  }
  if (::listen(fd.get(), kBacklog) != 0) return fail_errno(errno, what);
  return fd;
}

/// One line, without its newline. Errc::closed if the stream ends first.
Result<std::string> read_line(int fd, std::size_t bytes_max, io::Deadline deadline) {
  std::string line;
  std::array<char, 4096> piece;
  for (;;) {
    VMSHADOW_ASSIGN(const std::size_t got,
                    io::read_some(fd, std::as_writable_bytes(std::span(piece)), deadline));
    if (got == 0) return fail(Errc::closed, "the connection ended before its line did");
    const auto end =
        std::find(piece.begin(), piece.begin() + static_cast<std::ptrdiff_t>(got), '\n');
    line.append(piece.begin(), end);
    if (line.size() > bytes_max) {
      return fail(Errc::invalid_argument,
                  fmt::format("the request is longer than {} bytes", bytes_max));
    }
    if (end != piece.begin() + static_cast<std::ptrdiff_t>(got)) return line;
  }
}

Status write_line(int fd, std::string line, io::Deadline deadline) {
  line += '\n';
  return io::write_all(fd, std::as_bytes(std::span(line)), deadline);
}

}  // namespace

Result<std::unique_ptr<ControlServer>> ControlServer::start(
    const std::string& directory, StoreControl& control, std::chrono::milliseconds request_within) {
  VMSHADOW_ASSIGN(UniqueFd listener, listen_in(directory));
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake) return fail_errno(errno, "making an event descriptor");
  std::unique_ptr<ControlServer> server(
      new ControlServer(directory, control, std::move(listener), std::move(wake), request_within));
  server->thread_ = std::thread([raw = server.get()] { raw->serve(); });
  return server;
}

ControlServer::ControlServer(std::string directory, StoreControl& control, UniqueFd listener,
                             UniqueFd wake, std::chrono::milliseconds request_within)
    : directory_(std::move(directory)),
      control_(control),
      listener_(std::move(listener)),
      wake_(std::move(wake)),
      request_within_(request_within) {}

ControlServer::~ControlServer() {
  ::eventfd_write(wake_.get(), 1);
  if (thread_.joinable()) thread_.join();
  if (const auto path = SocketPath::of(directory_)) ::unlink(path->text().c_str());
}

void ControlServer::serve() {
  for (;;) {
    auto accepted = io::accept_connection(listener_.get(), wake_.get(), io::kNoDeadline);
    if (!accepted) {
      spdlog::error("the control socket is closed: {}", accepted.error().message);
      return;
    }
    if (!*accepted) return;
    if (const auto served = serve_connection((*accepted)->get()); !served) {
      spdlog::debug("a control connection ended: {}", served.error().message);
    }
  }
}

Status ControlServer::serve_connection(int fd) {
  const io::Deadline deadline = io::deadline_after(request_within_);
  auto line = read_line(fd, kControlRequestBytesMax, deadline);
  if (!line && line.error().code != Errc::invalid_argument) return fail(std::move(line).error());
  const auto request = line ? parse_control_request(*line) : fail(std::move(line).error());
  ControlResponse response = request ? dispatch(control_, *request) : fail(request.error());
  if (request && !std::holds_alternative<StatusRequest>(*request)) {
    spdlog::info("control: {}: {}", serialize(*request),
                 response ? "done" : response.error().message);
  }
  return write_line(fd, serialize(response), io::deadline_after(request_within_));
}

namespace {

ControlResponse ask(int fd, const ControlRequest& request, io::Deadline deadline) {
  VMSHADOW_TRY(write_line(fd, serialize(request), deadline));
  auto line = read_line(fd, kControlResponseBytesMax, deadline);
  if (!line) {
    return fail(std::move(line).error().with_context(
        "waiting for the store's answer on its control socket (it may still do what was asked)"));
  }
  return parse_control_response(*line);
}

}  // namespace

std::optional<ControlResponse> call_store(const std::string& directory,
                                          const ControlRequest& request,
                                          std::chrono::milliseconds answer_within) {
  const io::Deadline deadline = io::deadline_after(answer_within);
  const auto path = SocketPath::of(directory);
  if (!path) return fail(path.error());
  struct stat there {};
  if (::lstat(path->text().c_str(), &there) == 0 && !S_ISSOCK(there.st_mode)) return std::nullopt;
  auto fd = io::connect_unix(path->text(), deadline);
  if (fd) return ask(fd->get(), request, deadline);
  // Refused: a dead store's socket. No file: none has served here.
  if (fd.error().code == Errc::closed || fd.error().code == Errc::not_found) return std::nullopt;
  return fail(std::move(fd).error().with_context(full_path(directory)));
}

}  // namespace vmshadow::app
