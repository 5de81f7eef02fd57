// Conversations with a monitor, in the typed commands of qmp/commands.h: they run against a real
// QEMU (tests/e2e), which also records them, and against those recordings (tests/unit). One thread,
// each step waiting for what it depends on, so that a conversation has one order only.
#pragma once

#include <nlohmann/json.hpp>

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <ostream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "qmp/session.h"

namespace vmshadow::test {

/// The events of a session, for the script to wait on. Outlives the session.
class EventLog {
 public:
  [[nodiscard]] qmp::EventHandler handler();
  /// Takes the oldest event `name` (with data.status == `status`, unless empty), waiting for it;
  /// others stay for later. False if none comes in 30 s.
  [[nodiscard]] bool wait_for(const std::string& name, const std::string& status = "");

 private:
  std::mutex mutex_;
  std::condition_variable came_;
  std::vector<std::pair<std::string, qmp::Json>> events_;
};

/// The other end of a migration socket. Without a live QEMU it has nobody to talk to and says
/// nothing.
class ColoPeer {
 public:
  ColoPeer(UniqueFd fd, bool live);
  ~ColoPeer();
  ColoPeer(const ColoPeer&) = delete;
  ColoPeer& operator=(const ColoPeer&) = delete;
  /// Sends one COLO message.
  void send(std::uint32_t message);
  /// Waits until the last thing QEMU sent is `message`. False if that does not happen in 30 s.
  [[nodiscard]] bool wait_for(std::uint32_t message);

 private:
  void drain();
  UniqueFd fd_;
  bool live_;
  std::mutex mutex_;
  std::condition_variable came_;
  std::uint32_t tail_ = 0xffffffff;  ///< the last four bytes
  std::thread reader_;
};

struct QmpScript {
  std::string name;  ///< of its recording, without the suffix
  std::function<void(qmp::Session&, EventLog&, bool live)> run;
};
inline void PrintTo(const QmpScript& script, std::ostream* out) { *out << script.name; }
[[nodiscard]] const std::vector<QmpScript>& qmp_scripts();

inline constexpr const char* kScriptUuid = "6e1f5f0a-8d55-4f2f-9c0e-3a7f8f2b9d11";
/// The machine the scripts are about, without its monitors.
[[nodiscard]] std::vector<std::string> script_machine();

}  // namespace vmshadow::test
