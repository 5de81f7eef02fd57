// The store behind its control channel (store_control.h).
#pragma once

#include <string>
#include <utility>

#include "app/store_control.h"
#include "store/store.h"

namespace vmshadow::app {

class StoreAdapter final : public StoreControl {
 public:
  /// `store` outlives the adapter; `directory` is for status().
  StoreAdapter(store::Store& store, std::string directory)
      : store_(store), directory_(std::move(directory)) {}

  [[nodiscard]] Status pin(const std::string& vm, Epoch epoch) override;
  [[nodiscard]] Status unpin(const std::string& vm, Epoch epoch) override;
  [[nodiscard]] Status set_retention(const std::string& vm, const std::string& policy) override;
  [[nodiscard]] Status set_quota(const std::string& vm, std::uint64_t bytes) override;
  [[nodiscard]] Status note_reads(const std::map<std::uint64_t, std::uint64_t>& segments) override;
  [[nodiscard]] Result<nlohmann::ordered_json> status() override;

 private:
  store::Store& store_;
  const std::string directory_;
};

}  // namespace vmshadow::app
