#include "support/sidecar_service.h"

#include "support/fault_rig.h"

namespace vmshadow::test {

void SidecarService::tick() {
  if (program_ && !program_->process().running()) {
    retire(must(program_->process().wait(io::deadline_after(kFaultPatience))));
    start_at_ = io::deadline_after(kRestartAfter);
  }
  if (program_ || io::Deadline::clock::now() < start_at_) return;
  started_at_ = system_clock().monotonic();
  program_.emplace(must(SidecarProgram::start(config_)));
}

Result<ExitStatus> SidecarService::stop() {
  if (!program_) return fail(Errc::not_found, "no sidecar runs");
  VMSHADOW_ASSIGN(const ExitStatus status, program_->stop());
  retire(status);
  return status;
}

void SidecarService::retire(const ExitStatus& status) {
  const std::size_t attachments = program_->attachments();
  ends_.push_back({status, attachments > 0, program_->messages()});
  acknowledged_.merge(acknowledged_epochs(*program_));
  attachments_ += attachments;
  program_.reset();
}

std::set<std::uint64_t> SidecarService::acknowledged() const {
  std::set<std::uint64_t> all = acknowledged_;
  if (program_) all.merge(acknowledged_epochs(*program_));
  return all;
}

std::size_t SidecarService::epochs() const {
  return acknowledged_.size() + (program_ ? program_->epochs() : 0);
}

std::size_t SidecarService::attachments() const {
  return attachments_ + (program_ ? program_->attachments() : 0);
}

}  // namespace vmshadow::test
