// An EpochSink that keeps what it is given and can be told to refuse: a store's stand-in for tests
// of the wire alone.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include <vmshadow/epoch_sink.h>

#include "format/epoch_records.h"

namespace vmshadow::test {

class RecordingEpochSink final : public EpochSink {
 public:
  struct Committed {
    Epoch epoch;
    std::vector<std::vector<std::byte>> records;
  };

  [[nodiscard]] Result<std::unique_ptr<EpochSession>> open_session(const std::string& vm_name,
                                                                   const std::string&) override {
    const std::lock_guard lock(mutex);
    if (refuse_open) return fail(*refuse_open);
    if (open_sessions[vm_name]) return fail(Errc::in_use, "VM '" + vm_name + "' is in use");
    open_sessions[vm_name] = true;
    return std::unique_ptr<EpochSession>(new Session(*this, vm_name));
  }

  std::mutex mutex;
  std::optional<Error> refuse_open;
  std::optional<Error> refuse_commit;
  std::function<void()> before_commit;
  /// What a session may build on; empty: nothing.
  std::function<Result<std::unique_ptr<EpochImage>>()> open_base;
  std::atomic<bool> may_build{false};
  std::map<std::string, bool> open_sessions;
  std::vector<Committed> committed;
  Epoch next{};
  Generation generation{1};

 private:
  class Session final : public EpochSession {
   public:
    Session(RecordingEpochSink& sink, std::string name) : sink_(sink), name_(std::move(name)) {}
    ~Session() override {
      const std::lock_guard lock(sink_.mutex);
      sink_.open_sessions[name_] = false;
    }
    [[nodiscard]] Generation generation() const override { return sink_.generation; }
    [[nodiscard]] Epoch next_epoch() const override { return sink_.next; }
    [[nodiscard]] Result<std::unique_ptr<EpochImage>> base() const override {
      if (sink_.open_base) return sink_.open_base();
      return fail(Errc::not_found, "no epoch was committed yet");
    }
    void may_build_on_base() override { sink_.may_build = true; }
    [[nodiscard]] Status append(ByteSpan record) override {
      records_.emplace_back(record.begin(), record.end());
      return {};
    }
    [[nodiscard]] Result<CommitReceipt> commit(ByteSpan end_record) override {
      if (sink_.before_commit) sink_.before_commit();
      const std::lock_guard lock(sink_.mutex);
      if (sink_.refuse_commit) return fail(*sink_.refuse_commit);
      VMSHADOW_TRY(append(end_record));
      sink_.committed.push_back({sink_.next, std::exchange(records_, {})});
      const Epoch epoch = sink_.next;
      sink_.next = epoch.next();
      return CommitReceipt{epoch, WallTime{1}, std::chrono::microseconds{7}};
    }
    void abandon() override { records_.clear(); }

   private:
    RecordingEpochSink& sink_;
    std::string name_;
    std::vector<std::vector<std::byte>> records_;
  };
};

}  // namespace vmshadow::test
