#include <fmt/format.h>

#include <cerrno>
#include <system_error>

#include <vmshadow/result.h>

#include "base/assert.h"

namespace vmshadow {

std::string_view errc_name(Errc code) {
  switch (code) {
    case Errc::invalid_argument:
      return "invalid_argument";
    case Errc::not_found:
      return "not_found";
    case Errc::already_exists:
      return "already_exists";
    case Errc::in_use:
      return "in_use";
    case Errc::permission:
      return "permission";
    case Errc::unsupported:
      return "unsupported";
    case Errc::version:
      return "version";
    case Errc::protocol:
      return "protocol";
    case Errc::corrupt:
      return "corrupt";
    case Errc::stale_generation:
      return "stale_generation";
    case Errc::no_space:
      return "no_space";
    case Errc::io:
      return "io";
    case Errc::timed_out:
      return "timed_out";
    case Errc::closed:
      return "closed";
    case Errc::cancelled:
      return "cancelled";
  }
  VMSHADOW_ASSERT(!"an Errc without a name");
  return "";
}

Error Error::with_context(std::string_view what) && {
  message = fmt::format("{}: {}", what, message);
  return std::move(*this);
}

namespace {
Errc classify(int errno_value) {
  switch (errno_value) {
    case ENOENT:
    case ENOTDIR:
    case ENODEV:
    case ENXIO:
      return Errc::not_found;
    case EEXIST:
      return Errc::already_exists;
    case EBUSY:
    case EADDRINUSE:
    case ETXTBSY:
      return Errc::in_use;
    case EACCES:
    case EPERM:
    case EROFS:
      return Errc::permission;
    case EOPNOTSUPP:
    case ENOSYS:
      return Errc::unsupported;
    case ENOSPC:
    case EDQUOT:
      return Errc::no_space;
    case ETIMEDOUT:
      return Errc::timed_out;
    case ECONNRESET:
    case EPIPE:
    case ECONNREFUSED:
    case ENOTCONN:
      return Errc::closed;
    case EINVAL:
    case ENAMETOOLONG:
      return Errc::invalid_argument;
    case ECANCELED:
      return Errc::cancelled;
    default:
      return Errc::io;
  }
}
}  // namespace

Error errno_error(int errno_value, std::string_view what) {
  return Error{classify(errno_value),
               fmt::format("{}: {}", what, std::generic_category().message(errno_value))};
}

}  // namespace vmshadow
