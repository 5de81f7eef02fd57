// Result<T>: what every operation that can fail in the field returns.
//
// Three kinds of trouble are kept apart: an operating error or bad input is an Error in a Result; a
// bug is VMSHADOW_ASSERT (src/base/assert.h); an exception may leave only a program's start-up.
// An Error's message is one sentence that names the thing and, where there is one, the remedy:
// it ends up unchanged on an operator's terminal.
#pragma once

#include <tl/expected.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace vmshadow {

/// The numbers travel in refusals (docs/wire-format.md): never renumber, only add.
enum class Errc : std::uint16_t {
  invalid_argument = 1,   ///< the caller's or operator's input is wrong
  not_found = 2,          ///< the named thing does not exist
  already_exists = 3,     ///< it exists and must not
  in_use = 4,             ///< somebody else holds it (lock, monitor, VM, address)
  permission = 5,         ///< the system says no (EACCES, EPERM, EROFS)
  unsupported = 6,        ///< valid, but this version or machine cannot do it
  version = 7,            ///< another (newer) format or protocol version
  protocol = 8,           ///< a peer broke the protocol
  corrupt = 9,            ///< stored or received bytes fail their checksum or structure
  stale_generation = 10,  ///< the caller's generation was overtaken: it no longer owns the VM
  no_space = 11,          ///< ENOSPC, EDQUOT, or a configured capacity is used up
  io = 12,                ///< any other error of the operating system
  timed_out = 13,         ///< a deadline passed
  closed = 14,            ///< the peer or file went away in mid-operation
  cancelled = 15,         ///< we were told to stop
};

/// Short stable name ("not_found"), used in logs, wire errors and --json.
[[nodiscard]] std::string_view errc_name(Errc code);

struct [[nodiscard]] Error {
  Errc code{};
  std::string message;

  /// The same error with "what: " before its message.
  [[nodiscard]] Error with_context(std::string_view what) &&;
};

template <class T>
using Result = tl::expected<T, Error>;
using Status = Result<void>;

/// Makes the failing half of a Result: `return fail(Errc::not_found, "no VM …")`.
[[nodiscard]] inline tl::unexpected<Error> fail(Errc code, std::string message) {
  return tl::unexpected<Error>(Error{code, std::move(message)});
}
[[nodiscard]] inline tl::unexpected<Error> fail(Error error) {
  return tl::unexpected<Error>(std::move(error));
}
/// An errno as an Error, classified: "what: No space left on device".
[[nodiscard]] Error errno_error(int errno_value, std::string_view what);
[[nodiscard]] inline tl::unexpected<Error> fail_errno(int errno_value, std::string_view what) {
  return tl::unexpected<Error>(errno_error(errno_value, what));
}

}  // namespace vmshadow

/// Returns from the enclosing function if `expr` (a Result) failed; drops its value.
#define VMSHADOW_TRY(expr)                                                                \
  do {                                                                                    \
    if (auto vmshadow_try_result = (expr); !vmshadow_try_result.has_value())              \
      return ::tl::unexpected<::vmshadow::Error>(std::move(vmshadow_try_result).error()); \
  } while (false)

#define VMSHADOW_TRY_CONCAT_(a, b) a##b
#define VMSHADOW_TRY_CONCAT(a, b) VMSHADOW_TRY_CONCAT_(a, b)
#define VMSHADOW_ASSIGN_IMPL_(tmp, lhs, expr)                                                 \
  auto tmp = (expr);                                                                          \
  if (!(tmp).has_value()) return ::tl::unexpected<::vmshadow::Error>(std::move(tmp).error()); \
  lhs = *std::move(tmp)
/// `VMSHADOW_ASSIGN(auto x, f());`: binds the value or returns the error.
#define VMSHADOW_ASSIGN(lhs, expr) \
  VMSHADOW_ASSIGN_IMPL_(VMSHADOW_TRY_CONCAT(vmshadow_assign_, __LINE__), lhs, expr)
