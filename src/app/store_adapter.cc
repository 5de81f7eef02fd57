#include "app/store_adapter.h"

#include <fmt/format.h>
#include <unistd.h>

namespace vmshadow::app {
namespace {

tl::unexpected<Error> not_in_this_store(const char* what) {
  return fail(
      Errc::unsupported,
      fmt::format("this version's store keeps every epoch for ever and knows no {} yet", what));
}

}  // namespace

// The store does not thin its epochs yet: there is nothing a pin or a policy could change.

Status StoreAdapter::pin(const std::string&, Epoch) { return not_in_this_store("pins"); }

Status StoreAdapter::unpin(const std::string&, Epoch) { return not_in_this_store("pins"); }

Status StoreAdapter::set_retention(const std::string&, const std::string&) {
  return not_in_this_store("retention policies");
}

Result<nlohmann::ordered_json> StoreAdapter::status() {
  VMSHADOW_ASSIGN(const auto vms, store_.reader()->vms());
  std::uint64_t epochs = 0;
  for (const VmInfo& vm : vms) epochs += vm.epochs.size();
  nlohmann::ordered_json json;
  json["version"] = VMSHADOW_VERSION;
  json["pid"] = ::getpid();
  json["directory"] = directory_;
  json["vms"] = vms.size();
  json["epochs"] = epochs;
  json["damaged_places"] = store_.damage().size();
  return json;
}

}  // namespace vmshadow::app
