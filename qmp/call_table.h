// The commands in flight on one connection, and the callers waiting for them.
//
//   begin ─► (slot free?) ─► in flight ─► complete ─► wait returns the reply
//                                │
//                                └─ deadline ─► abandoned ─► complete: the late reply is dropped
//
// A command keeps its slot until its reply has come, even when nobody waits any more: QEMU still
// has it in its queue. Safe from any thread.
#pragma once

#include <nlohmann/json.hpp>

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include <vmshadow/result.h>

#include "io/socket.h"

namespace vmshadow::qmp {

using CallId = std::uint64_t;

enum class Lane { in_band, out_of_band };

/// What distinguishes one command from another before it is sent.
struct CallKind {
  Lane lane = Lane::in_band;
  bool passes_fd = false;
};

class CallTable {
 public:
  /// QEMU queues 8 in-band commands and stops reading when the eighth waits, which would shut out
  /// out-of-band commands too, at the very moment they are for. So one less.
  static constexpr std::size_t kInBandMax = 7;
  static constexpr std::size_t kOutOfBandMax = 8;

  /// Takes a slot for a command, waiting for one. Only one command that passes a descriptor is in
  /// flight at a time: QEMU keeps the descriptors of the newest message only, until a command takes
  /// them. Errc::timed_out (`what` opens its message), or the
  /// reason for which the session ended.
  [[nodiscard]] Result<CallId> begin(CallKind kind, const std::string& what, io::Deadline deadline);
  /// The reply to a command begun: the whole message. Errc::timed_out (the command is abandoned),
  /// or the reason for which the session ended.
  [[nodiscard]] Result<nlohmann::json> wait(CallId id, const std::string& what,
                                            io::Deadline deadline);
  /// The command was not sent after all.
  void withdraw(CallId id);
  /// Gives a reply to its caller. False if no such command is in flight.
  [[nodiscard]] bool complete(CallId id, nlohmann::json reply);

  /// Fails all callers, present and future. The first reason stays.
  void end(Error reason);
  [[nodiscard]] std::optional<Error> ended() const;

 private:
  struct Call {
    CallKind kind;
    bool abandoned = false;
    std::optional<nlohmann::json> reply;
  };
  [[nodiscard]] bool has_slot(CallKind kind) const;
  void count(CallKind kind, int change);

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<CallId, Call> calls_;
  CallId last_id_ = 0;
  std::size_t in_band_ = 0;
  std::size_t out_of_band_ = 0;
  std::size_t passing_fd_ = 0;
  std::optional<Error> ended_;
};

}  // namespace vmshadow::qmp
