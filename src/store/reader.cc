#include "store/reader.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "store/journal_image.h"
#include "store/recovery.h"

namespace vmshadow::store {

Result<std::unique_ptr<Reader>> Reader::open(const std::string& path) {
  VMSHADOW_ASSIGN(StoreDirectory directory, StoreDirectory::open(path));
  VMSHADOW_ASSIGN(Recovery recovery, recover(directory));
  auto segments = std::make_shared<const SegmentFiles>(std::move(directory));
  auto reader = std::make_unique<Reader>(std::move(recovery.index), std::move(segments));
  reader->damage_ = std::move(recovery.damage);
  return reader;
}

Result<std::vector<VmInfo>> Reader::vms() const { return index_->vms(); }

Result<VmInfo> Reader::vm(const std::string& name) const {
  if (auto info = index_->vm(vm_id(name))) return *std::move(info);
  std::vector<std::string> names;
  for (const VmInfo& info : index_->vms()) names.push_back(info.name);
  return fail(Errc::not_found, names.empty()
                                   ? fmt::format("no VM '{}': the store holds none yet", name)
                                   : fmt::format("no VM '{}' in the store, which holds: {}", name,
                                                 fmt::join(names, ", ")));
}

Result<std::unique_ptr<EpochImage>> Reader::open(const std::string& vm_name, Epoch epoch) const {
  VMSHADOW_TRY(vm(vm_name));
  VMSHADOW_ASSIGN(auto chain, index_->chain(vm_name, epoch));
  return std::make_unique<JournalImage>(vm_name, std::move(chain), segments_);
}

}  // namespace vmshadow::store
