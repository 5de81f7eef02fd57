// The running store's control channel: what may be asked of it, as text and as an interface. Pure;
// control_socket.h carries it.
//
// DIR/control.sock, a unix stream socket (mode 0600: who may write the store may command it). One
// connection carries one request and one response, each a JSON object on a line of its own:
//
//   {"command":"pin","vm":"web1","epoch":1200}              {"ok":true}
//   {"command":"unpin","vm":"web1","epoch":1200}            {"ok":true}
//   {"command":"set_retention","vm":"web1","policy":"window=10m,hourly=1d"}
//   {"command":"set_quota","vm":"web1","bytes":10737418240} (0: none)
//   {"command":"note_reads","segments":[[17,1048576]]}      what a restore has read: segment, bytes
//   {"command":"status"}                                    {"ok":true,"result":{…}}
//                        {"ok":false,"error":{"code":"not_found","message":"…"}}
//
// A key that is not in the table is refused, not ignored: a newer program that asks for more than
// this one can do must hear so. Error codes are errc_name()'s.
#pragma once

#include <nlohmann/json.hpp>

#include <map>
#include <string>
#include <variant>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

namespace vmshadow::app {

inline constexpr std::size_t kControlRequestBytesMax = 16 * 1024;  ///< without the newline
inline constexpr std::size_t kControlResponseBytesMax = std::size_t{1} << 20;
inline constexpr std::size_t kPolicyTextBytesMax = 1024;
inline constexpr std::size_t kNoteReadsMax = 256;  ///< segments

/// As a policy: the VM follows the store's own again.
inline constexpr const char* kDefaultPolicy = "default";

struct PinRequest {
  std::string vm;
  Epoch epoch;
  bool operator==(const PinRequest&) const = default;
};
struct UnpinRequest {
  std::string vm;
  Epoch epoch;
  bool operator==(const UnpinRequest&) const = default;
};
struct SetRetentionRequest {
  std::string vm;
  std::string policy;
  bool operator==(const SetRetentionRequest&) const = default;
};
struct SetQuotaRequest {
  std::string vm;
  std::uint64_t bytes{};  ///< 0: none
  bool operator==(const SetQuotaRequest&) const = default;
};
struct NoteReadsRequest {
  std::map<std::uint64_t, std::uint64_t> segments;  ///< bytes by segment; at most kNoteReadsMax
  bool operator==(const NoteReadsRequest&) const = default;
};
struct StatusRequest {
  bool operator==(const StatusRequest&) const = default;
};
using ControlRequest = std::variant<PinRequest, UnpinRequest, SetRetentionRequest, SetQuotaRequest,
                                    NoteReadsRequest, StatusRequest>;

/// A store that takes commands. Called by one thread at a time, beside the store's own work.
class StoreControl {
 public:
  virtual ~StoreControl() = default;
  /// Durable when they return. Errc::not_found: no such VM or epoch.
  [[nodiscard]] virtual Status pin(const std::string& vm, Epoch epoch) = 0;
  [[nodiscard]] virtual Status unpin(const std::string& vm, Epoch epoch) = 0;
  /// Errc::invalid_argument says what in the policy cannot be read.
  [[nodiscard]] virtual Status set_retention(const std::string& vm, const std::string& policy) = 0;
  [[nodiscard]] virtual Status set_quota(const std::string& vm, std::uint64_t bytes) = 0;
  [[nodiscard]] virtual Status note_reads(
      const std::map<std::uint64_t, std::uint64_t>& segments) = 0;
  [[nodiscard]] virtual Result<nlohmann::ordered_json> status() = 0;
};

/// Without a newline. A request's VM name is valid and its policy printable.
[[nodiscard]] std::string serialize(const ControlRequest& request);
/// Errc::invalid_argument (what is wrong with it), Errc::unsupported (a command or key this version
/// does not know).
[[nodiscard]] Result<ControlRequest> parse_control_request(const std::string& line);

/// The response's result (null where there is none), or its error.
using ControlResponse = Result<nlohmann::ordered_json>;
[[nodiscard]] std::string serialize(const ControlResponse& response);
/// Errc::protocol if it is no response; else what it says.
[[nodiscard]] ControlResponse parse_control_response(const std::string& line);

/// Does what the request says.
[[nodiscard]] ControlResponse dispatch(StoreControl& store, const ControlRequest& request);

/// Errc::invalid_argument unless `text` may stand in a request: 1 to kPolicyTextBytesMax printable
/// ASCII characters. What they mean the store says.
[[nodiscard]] Status check_policy_text(const std::string& text);

}  // namespace vmshadow::app
