// One VM's right to append: checks what the peer sends once more and hands it to the log in pieces.
//
//            append          append fails                abandon, commit (either way)
//   idle ───────────► open ───────────────► failed ─────────────────────────────────► idle
//     ▲                │ commit, abandon
//     └────────────────┘
//
// At most one piece of the open epoch is held here, whatever the epoch's size; its page table (12
// bytes a page) is built on the way. Of a VM that has a key nothing of the guest leaves here plain.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include <vmshadow/clock.h>
#include <vmshadow/epoch_sink.h>

#include "crypt/vm_key.h"
#include "store/commit_figures.h"
#include "store/epoch_sealer.h"
#include "store/epoch_tally.h"
#include "store/journal_index.h"
#include "store/log_writer.h"

namespace vmshadow::store {

class Session final : public EpochSession {
 public:
  /// What the session stands on; alive as long as `closed` was not called.
  struct Ground {
    LogWriter& log;
    JournalIndex& index;
    const ShadowReader& reader;
    const Clock& clock;
    CommitFigures& commits;
    std::size_t piece_bytes;
    crypt::VmKeysPtr keys;         ///< epochs are sealed with the first; null: stored as they come
    std::function<void()> closed;  ///< called by the destructor, once
  };
  Session(Ground ground, std::string vm_name, Generation generation, Epoch next_epoch);
  ~Session() override;

  [[nodiscard]] Generation generation() const override { return generation_; }
  [[nodiscard]] Epoch next_epoch() const override { return next_epoch_; }
  [[nodiscard]] Result<std::unique_ptr<EpochImage>> base() const override;
  void may_build_on_base() override;
  [[nodiscard]] Status append(ByteSpan record) override;
  [[nodiscard]] Result<CommitReceipt> commit(ByteSpan end_record) override;
  void abandon() override;

 private:
  /// What the first epoch may build on.
  struct Base {
    Generation generation;
    MachinePtr machine;
  };
  struct OpenEpoch {
    explicit OpenEpoch(MachinePtr machine) : tally(std::move(machine)) {}
    EpochTally tally;  ///< of what the peer sends
    std::optional<EpochSealer> sealer;
    LogPiece piece;
    EpochInLogPtr in_log;
    std::optional<Error> failure;
  };
  [[nodiscard]] Result<format::RecordPrefix> check_record(ByteSpan record) const;
  [[nodiscard]] Status take(ByteSpan record);
  [[nodiscard]] Result<CommitReceipt> finish(ByteSpan end_record);
  /// Settles, at the session's first record, what its epochs build on.
  void choose_label(ByteSpan record);
  void open_epoch();
  void add_to_index(const format::EpochSummary& summary, PageTable pages, WallTime committed);
  [[nodiscard]] std::string epoch_text() const;

  Ground ground_;
  const std::string vm_name_;
  const VmId vm_;
  const Generation generation_;
  Epoch next_epoch_;
  /// What its records are labelled with: the generation of the full epoch they build on.
  Generation label_;
  MachinePtr machine_;  ///< of that epoch; null before there is one
  std::optional<Base> base_;
  std::optional<OpenEpoch> open_;
};

}  // namespace vmshadow::store
