#include "crypt/key_directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/unique_fd.h"

namespace vmshadow::crypt {
namespace {

/// Group and others.
constexpr mode_t kOthersMode = 0077;

Status check_private(const struct stat& facts, const std::string& path) {
  if (!S_ISREG(facts.st_mode)) {
    return fail(Errc::invalid_argument, fmt::format("the key '{}' is not a file", path));
  }
  if ((facts.st_mode & kOthersMode) != 0) {
    return fail(Errc::permission,
                fmt::format("the key '{}' is open to other users (mode {:04o}): chmod 600 it, and "
                            "give the VM a new key if somebody may have read this one",
                            path, facts.st_mode & 07777u));
  }
  if (facts.st_uid != ::geteuid() && facts.st_uid != 0) {
    return fail(Errc::permission,
                fmt::format("the key '{}' belongs to another user (uid {})", path, facts.st_uid));
  }
  return {};
}

}  // namespace

Result<std::vector<SecretKey>> KeyDirectory::keys_of(const std::string& vm_name) const {
  const std::string path = fmt::format("{}/{}.key", path_, vm_name);
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd && errno == ENOENT) {
    return fail(Errc::not_found,
                fmt::format("VM '{}' has no key: there is no file '{}'", vm_name, path));
  }
  if (!fd) return fail_errno(errno, fmt::format("opening the key '{}'", path));
  struct stat facts {};
  if (::fstat(fd.get(), &facts) != 0) {
    return fail_errno(errno, fmt::format("looking at the key '{}'", path));
  }
  VMSHADOW_TRY(check_private(facts, path));
  SecretText text;
  while (!text.room().empty()) {
    const ssize_t got = ::read(fd.get(), text.room().data(), text.room().size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno(errno, fmt::format("reading the key '{}'", path));
    if (got == 0) break;
    text.add(static_cast<std::size_t>(got));
  }
  auto keys = parse_keys(text.text());
  if (!keys) {
    return fail(std::move(keys).error().with_context(fmt::format("the key '{}'", path)));
  }
  return keys;
}

}  // namespace vmshadow::crypt
