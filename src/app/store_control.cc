#include "app/store_control.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string_view>
#include <utility>

namespace vmshadow::app {
namespace {

using Json = nlohmann::ordered_json;

template <class... Handlers>
struct Overloaded : Handlers... {
  using Handlers::operator()...;
};
template <class... Handlers>
Overloaded(Handlers...) -> Overloaded<Handlers...>;

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::optional<Errc> errc_of(std::string_view name) {
  for (auto code = Errc::invalid_argument; code <= Errc::cancelled;
       code = static_cast<Errc>(static_cast<std::uint16_t>(code) + 1)) {
    if (errc_name(code) == name) return code;
  }
  return std::nullopt;
}

tl::unexpected<Error> malformed(std::string_view what) {
  return fail(Errc::invalid_argument, fmt::format("the request {}", what));
}

Status check_keys(const Json& request, std::initializer_list<std::string_view> known) {
  for (const auto& [key, unused] : request.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      return fail(Errc::unsupported,
                  fmt::format("the request has a key '{}' that this store does not know: it is of "
                              "another version",
                              key.substr(0, 64)));
    }
  }
  return {};
}

Result<std::string> text_of(const Json& request, const char* key) {
  const auto found = request.find(key);
  if (found == request.end() || !found->is_string()) {
    return malformed(fmt::format("has no text '{}'", key));
  }
  return found->get<std::string>();
}

Result<std::string> vm_of(const Json& request) {
  VMSHADOW_ASSIGN(std::string vm, text_of(request, "vm"));
  if (!is_valid_vm_name(vm)) return malformed("has a 'vm' that cannot be a VM's name");
  return vm;
}

template <class Request>
Result<ControlRequest> pin_or_unpin(const Json& request) {
  VMSHADOW_TRY(check_keys(request, {"command", "vm", "epoch"}));
  VMSHADOW_ASSIGN(std::string vm, vm_of(request));
  const auto epoch = request.find("epoch");
  if (epoch == request.end() || !epoch->is_number_unsigned()) {
    return malformed("has no number 'epoch'");
  }
  return ControlRequest(Request{std::move(vm), Epoch{epoch->get<std::uint64_t>()}});
}

Result<ControlRequest> set_retention(const Json& request) {
  VMSHADOW_TRY(check_keys(request, {"command", "vm", "policy"}));
  VMSHADOW_ASSIGN(std::string vm, vm_of(request));
  VMSHADOW_ASSIGN(std::string policy, text_of(request, "policy"));
  VMSHADOW_TRY(check_policy_text(policy));
  return ControlRequest(SetRetentionRequest{std::move(vm), std::move(policy)});
}

Result<ControlRequest> set_quota(const Json& request) {
  VMSHADOW_TRY(check_keys(request, {"command", "vm", "bytes"}));
  VMSHADOW_ASSIGN(std::string vm, vm_of(request));
  const auto bytes = request.find("bytes");
  if (bytes == request.end() || !bytes->is_number_unsigned()) {
    return malformed("has no number 'bytes'");
  }
  return ControlRequest(SetQuotaRequest{std::move(vm), bytes->get<std::uint64_t>()});
}

Result<ControlRequest> note_reads(const Json& request) {
  VMSHADOW_TRY(check_keys(request, {"command", "segments"}));
  const auto segments = request.find("segments");
  if (segments == request.end() || !segments->is_array() || segments->size() > kNoteReadsMax) {
    return malformed(fmt::format("has no list 'segments' of at most {}", kNoteReadsMax));
  }
  NoteReadsRequest reads;
  for (const Json& pair : *segments) {
    if (!pair.is_array() || pair.size() != 2 || !pair[0].is_number_unsigned() ||
        !pair[1].is_number_unsigned()) {
      return malformed("has something else than pairs of segment and bytes in 'segments'");
    }
    reads.segments[pair[0].get<std::uint64_t>()] = pair[1].get<std::uint64_t>();
  }
  return ControlRequest(std::move(reads));
}

ControlResponse without_result(Status status) {
  if (!status) return fail(std::move(status).error());
  return Json(nullptr);
}

}  // namespace

Status check_policy_text(const std::string& text) {
  const bool printable =
      std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~'; });
  if (!text.empty() && text.size() <= kPolicyTextBytesMax && printable) return {};
  return fail(Errc::invalid_argument,
              fmt::format("a retention policy is text of 1 to {} printable characters, as "
                          "window=10m,minutely=1h,hourly=1d,daily=30d",
                          kPolicyTextBytesMax));
}

std::string serialize(const ControlRequest& request) {
  return std::visit(
      Overloaded{[](const PinRequest& r) {
                   return dump({{"command", "pin"}, {"vm", r.vm}, {"epoch", r.epoch.value}});
                 },
                 [](const UnpinRequest& r) {
                   return dump({{"command", "unpin"}, {"vm", r.vm}, {"epoch", r.epoch.value}});
                 },
                 [](const SetRetentionRequest& r) {
                   return dump({{"command", "set_retention"}, {"vm", r.vm}, {"policy", r.policy}});
                 },
                 [](const SetQuotaRequest& r) {
                   return dump({{"command", "set_quota"}, {"vm", r.vm}, {"bytes", r.bytes}});
                 },
                 [](const NoteReadsRequest& r) {
                   Json pairs = Json::array();
                   for (const auto& [segment, bytes] : r.segments) {
                     pairs.push_back(Json::array({segment, bytes}));
                   }
                   return dump({{"command", "note_reads"}, {"segments", std::move(pairs)}});
                 },
                 [](const StatusRequest&) {
                   Json json;
                   json["command"] = "status";
                   return dump(json);
                 }},
      request);
}

Result<ControlRequest> parse_control_request(const std::string& line) {
  if (line.size() > kControlRequestBytesMax) return malformed("is too long");
  const Json request = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (request.is_discarded() || !request.is_object()) return malformed("is not a JSON object");
  VMSHADOW_ASSIGN(const std::string command, text_of(request, "command"));
  if (command == "pin") return pin_or_unpin<PinRequest>(request);
  if (command == "unpin") return pin_or_unpin<UnpinRequest>(request);
  if (command == "set_retention") return set_retention(request);
  if (command == "set_quota") return set_quota(request);
  if (command == "note_reads") return note_reads(request);
  if (command == "status") {
    VMSHADOW_TRY(check_keys(request, {"command"}));
    return ControlRequest(StatusRequest{});
  }
  return fail(Errc::unsupported,
              "the request has a command that this store does not know: it is "
              "of another version");
}

std::string serialize(const ControlResponse& response) {
  Json json;
  json["ok"] = response.has_value();
  if (!response) {
    json["error"]["code"] = errc_name(response.error().code);
    json["error"]["message"] = response.error().message;
  } else if (!response->is_null()) {
    json["result"] = *response;
  }
  return dump(json);
}

ControlResponse parse_control_response(const std::string& line) {
  const auto no_response = [] {
    return fail(Errc::protocol,
                "the store's answer on its control socket cannot be read: is it of "
                "another version?");
  };
  if (line.size() > kControlResponseBytesMax) return no_response();
  Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object()) return no_response();
  const auto ok = json.find("ok");
  if (ok == json.end() || !ok->is_boolean()) return no_response();
  if (ok->get<bool>()) {
    const auto result = json.find("result");
    return result == json.end() ? Json(nullptr) : std::move(*result);
  }
  const auto error = json.find("error");
  if (error == json.end() || !error->is_object()) return no_response();
  const auto code = error->find("code");
  const auto message = error->find("message");
  if (code == error->end() || !code->is_string() || message == error->end() ||
      !message->is_string()) {
    return no_response();
  }
  // A code that only a newer store has is an error all the same.
  return fail(errc_of(code->get_ref<const std::string&>()).value_or(Errc::io),
              message->get<std::string>());
}

ControlResponse dispatch(StoreControl& store, const ControlRequest& request) {
  return std::visit(
      Overloaded{
          [&](const PinRequest& r) { return without_result(store.pin(r.vm, r.epoch)); },
          [&](const UnpinRequest& r) { return without_result(store.unpin(r.vm, r.epoch)); },
          [&](const SetRetentionRequest& r) {
            return without_result(store.set_retention(r.vm, r.policy));
          },
          [&](const SetQuotaRequest& r) { return without_result(store.set_quota(r.vm, r.bytes)); },
          [&](const NoteReadsRequest& r) { return without_result(store.note_reads(r.segments)); },
          [&](const StatusRequest&) { return store.status(); }},
      request);
}

}  // namespace vmshadow::app
