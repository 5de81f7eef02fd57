#include "capture/vm_claim.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstddef>
#include <cstring>

#include "base/assert.h"
#include "capture/qemu_process.h"
#include "io/socket.h"

namespace vmshadow::capture {
namespace {

struct Name {
  sockaddr_un address{};
  socklen_t bytes{};
};

// Abstract: a leading NUL, and no file.
Name claim_name(int qemu_pid) {
  Name name;
  name.address.sun_family = AF_UNIX;
  const std::string text = fmt::format("vmshadow-sidecar-of-{}", qemu_pid);
  VMSHADOW_ASSERT(text.size() + 1 < sizeof name.address.sun_path);
  std::memcpy(name.address.sun_path + 1, text.data(), text.size());
  name.bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + text.size());
  return name;
}

/// The holder's process id, or nothing if it has just ended.
std::string holder_text(const Name& name) {
  const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd ||
      ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&name.address), name.bytes) != 0) {
    return {};
  }
  const auto pid = io::peer_pid(fd.get());
  return pid ? fmt::format(" (process {})", *pid) : std::string();
}

}  // namespace

Result<std::optional<VmClaim>> VmClaim::take(const qmp::Session& session) {
  const auto qemu = find_qemu_process(session);
  if (!qemu) return std::nullopt;
  const Name name = claim_name(qemu->pid);
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return fail_errno(errno, "claiming the VM");
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&name.address), name.bytes) != 0) {
    if (errno != EADDRINUSE) return fail_errno(errno, "claiming the VM");
    return fail(Errc::in_use, fmt::format("another vmshadow-sidecar{} protects it: stop that one "
                                          "first, it releases the VM itself",
                                          holder_text(name)));
  }
  // Listening, it tells who it is.
  if (::listen(fd.get(), 1) != 0) return fail_errno(errno, "claiming the VM");
  return VmClaim(std::move(fd));
}

}  // namespace vmshadow::capture
