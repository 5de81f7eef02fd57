#include "app/store_adapter.h"

#include <fmt/format.h>
#include <unistd.h>

#include <optional>

#include "store/retention.h"

namespace vmshadow::app {
Status StoreAdapter::pin(const std::string& vm, Epoch epoch) { return store_.pin(vm, epoch); }

Status StoreAdapter::unpin(const std::string& vm, Epoch epoch) { return store_.unpin(vm, epoch); }

Status StoreAdapter::set_retention(const std::string& vm, const std::string& policy) {
  if (policy == kDefaultPolicy) return store_.set_retention(vm, std::nullopt);
  VMSHADOW_ASSIGN(const store::RetentionPolicy parsed, store::parse_policy(policy));
  return store_.set_retention(vm, parsed);
}

Status StoreAdapter::set_quota(const std::string& vm, std::uint64_t bytes) {
  return store_.set_quota(vm, bytes);
}

Status StoreAdapter::note_reads(const std::map<std::uint64_t, std::uint64_t>& segments) {
  store::SegmentFiles::Reads reads;
  for (const auto& [segment, bytes] : segments) reads[SegmentId{segment}] = bytes;
  store_.note_reads(reads);
  return {};
}

Result<nlohmann::ordered_json> StoreAdapter::status() {
  const store::StoreStats stats = store_.stats();
  nlohmann::ordered_json json;
  json["version"] = VMSHADOW_VERSION;
  json["pid"] = ::getpid();
  json["directory"] = directory_;
  json["vms"] = stats.vms.size();
  json["epochs"] = stats.epochs;
  json["page_versions"] = stats.page_versions;
  json["index_bytes"] = stats.index_bytes;
  json["ingested_bytes"] = stats.ingested_bytes;
  json["written_bytes"] = stats.written_bytes;
  json["moved_bytes"] = stats.moved_bytes;
  json["ahead_bytes"] = stats.ahead_bytes;
  json["recycled_segments"] = stats.recycled_segments;
  json["scrubbed_bytes"] = stats.scrubbed_bytes;
  json["scrub_rounds"] = stats.scrub_rounds;
  json["salvaged_pages"] = stats.salvaged_pages;
  json["repaired_pages"] = stats.repaired_pages;
  json["lost_pages"] = stats.lost_pages;
  json["journal_segments"] = stats.journal_segments;
  json["archive_segments"] = stats.archive_segments;
  json["tiers"] = nlohmann::ordered_json::array();
  for (const store::TierStats& tier : stats.tiers) {
    nlohmann::ordered_json one;
    one["name"] = tier.name;
    one["directories"] = tier.directories;
    one["capacity_bytes"] = tier.capacity_bytes;
    one["stored_bytes"] = tier.stored_bytes;
    one["spare_bytes"] = tier.spare_bytes;
    one["live_bytes"] = tier.live_bytes;
    one["read_bytes"] = tier.read_bytes;
    json["tiers"].push_back(std::move(one));
  }
  json["usage"] = nlohmann::ordered_json::array();
  for (const store::VmStats& vm : stats.vms) {
    nlohmann::ordered_json one;
    one["vm"] = vm.name;
    one["epochs"] = vm.epochs;
    one["live_bytes"] = vm.live_bytes;
    one["quota_bytes"] = vm.quota_bytes;
    json["usage"].push_back(std::move(one));
  }
  json["damaged_places"] = store_.damage().size();
  return json;
}

}  // namespace vmshadow::app
