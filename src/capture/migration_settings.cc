#include "capture/migration_settings.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <iterator>

#include "base/assert.h"
#include "capture/colo_versions.h"
#include "capture/first_pass_limit.h"
#include "qmp/commands.h"
#include "qmp/json_fields.h"

namespace vmshadow::capture {
namespace {

// "As fast as it goes", in bytes per second; QEMU rejects values near 2^64.
constexpr std::uint64_t kBandwidthUnlimited = std::uint64_t{1} << 50;

struct Parameter {
  const char* name;
  std::uint64_t default_value;  // QEMU's own, 5.0 to 10.x
};
constexpr Parameter kParameters[] = {{"max-bandwidth", std::uint64_t{128} << 20},
                                     {"x-checkpoint-delay", 20'000},
                                     {"downtime-limit", 300}};

// Capabilities that would change the stream or the protocol; switched off where they are on.
constexpr const char* kCapabilitiesOff[] = {
    "return-path",
    "multifd",
    "xbzrle",
    "compress",
    "postcopy-ram",
    "x-ignore-shared",
    "auto-converge",
    "background-snapshot",
    "rdma-pin-all",
    "zero-blocks",
    "release-ram",
    "block",
    "mapped-ram",
    "switchover-ack",
    "dirty-limit",
    "dirty-bitmaps",
    "postcopy-blocktime",
    "postcopy-preempt",
    "pause-before-switchover",
    "zero-copy-send",
};

}  // namespace

Result<MigrationSettings> MigrationSettings::read(qmp::Session& session, CaptureKind kind) {
  MigrationSettings settings;
  settings.kind_ = kind;
  VMSHADOW_ASSIGN(const auto capabilities, qmp::query_migrate_capabilities(session));
  VMSHADOW_ASSIGN(const qmp::Json parameters, qmp::query_migrate_parameters(session));
  // A bandwidth that nobody else would set.
  settings.left_by_capture_ =
      qmp::unsigned_member(parameters, "max-bandwidth") == kBandwidthUnlimited;
  for (const Parameter& parameter : kParameters) {
    if (const auto value = qmp::unsigned_member(parameters, parameter.name)) {
      settings.parameters_[parameter.name] =
          settings.left_by_capture_ ? parameter.default_value : *value;
    }
  }
  const auto is_on = [&](const char* name) {
    const auto found = capabilities.find(name);
    return found != capabilities.end() && found->second;
  };
  settings.left_by_full_pass_ =
      settings.left_by_capture_ && !is_on("x-colo") && is_on("return-path") && is_on("events");
  if (kind == CaptureKind::full_pass) {
    settings.on_ = {"return-path", "events"};
  } else {
    if (!capabilities.contains("x-colo")) {
      return fail(Errc::unsupported, "this QEMU does not offer the migration capability x-colo");
    }
    settings.on_.insert("x-colo");
    if (colo_version(session.version()).needs_return_path) settings.on_.insert("return-path");
  }
  for (const auto& [name, on] : capabilities) {
    // Never to be left on: found on, it was left so by a capture that died, and the VM's next
    // ordinary migration would enter COLO.
    if (name == "x-colo") {
      if (on || settings.on_.contains(name)) settings.capabilities_[name] = false;
      continue;
    }
    const bool off_wanted = std::find(std::begin(kCapabilitiesOff), std::end(kCapabilitiesOff),
                                      name) != std::end(kCapabilitiesOff);
    const bool on_wanted = settings.on_.contains(name);
    if (on_wanted ? !on : off_wanted && on) settings.capabilities_[name] = on;
    if (on_wanted && on && settings.left_by_capture_) settings.capabilities_[name] = false;
  }
  VMSHADOW_ASSERT(settings.text().size() <= kTextBytesMax);
  return settings;
}

Status MigrationSettings::apply_for_capture(qmp::Session& session) const {
  VMSHADOW_TRY(apply_capabilities(session));
  return apply_parameters(session);
}

Status MigrationSettings::apply_capabilities(qmp::Session& session) const {
  std::map<std::string, bool> wanted;
  for (const auto& [name, unused] : capabilities_) wanted[name] = on_.contains(name);
  if (auto set = qmp::migrate_set_capabilities(session, wanted); !set) {
    return fail(std::move(set).error().with_context(
        kind_ == CaptureKind::colo ? "switching QEMU's COLO on" : "preparing QEMU's migration"));
  }
  return {};
}

Status MigrationSettings::apply_parameters(qmp::Session& session) const {
  qmp::Json parameters{{"max-bandwidth", kBandwidthUnlimited},
                       {"downtime-limit", FirstPassLimit::kInitial.count()}};
  if (kind_ == CaptureKind::colo) parameters["x-checkpoint-delay"] = kCheckpointDelayMs;
  return qmp::migrate_set_parameters(session, parameters);
}

Status MigrationSettings::restore(qmp::Session& session) const {
  const Status capabilities = restore_capabilities(session);
  const Status parameters = restore_parameters(session);
  return capabilities ? parameters : capabilities;
}

Status MigrationSettings::restore_capabilities(qmp::Session& session) const {
  return qmp::migrate_set_capabilities(session, capabilities_);
}

Status MigrationSettings::restore_parameters(qmp::Session& session) const {
  return qmp::migrate_set_parameters(session, qmp::Json(parameters_));
}

std::string MigrationSettings::text() const {
  return qmp::Json{{"capabilities", capabilities_}, {"parameters", parameters_}}.dump();
}

Result<MigrationSettings> MigrationSettings::parse(const std::string& text) {
  const auto json = qmp::Json::parse(text, nullptr, false);
  const qmp::Json* capabilities = qmp::member(json, "capabilities");
  const qmp::Json* parameters = qmp::member(json, "parameters");
  if (capabilities == nullptr || parameters == nullptr) {
    return fail(Errc::invalid_argument, "these are no migration settings");
  }
  MigrationSettings settings;
  for (const auto& [name, value] : capabilities->items()) {
    if (value.is_boolean()) settings.capabilities_[name] = value.get<bool>();
  }
  for (const auto& [name, value] : parameters->items()) {
    if (value.is_number_unsigned()) settings.parameters_[name] = value.get<std::uint64_t>();
  }
  return settings;
}

}  // namespace vmshadow::capture
