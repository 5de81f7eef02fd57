// Recorded monitor conversations (qmp/transcripts/NAME.jsonl): one JSON object a line, in the order
// of the conversation, the text inside exactly as it was sent:
//
//   {"s": {"QMP": …}}            from QEMU
//   {"c": {"execute": …}}        from the client
//
// To make them again: VMSHADOW_RECORD_TRANSCRIPTS=qmp/transcripts BUILD/tests/e2e/e2e-qmp
// --gtest_filter='*Script*'
#pragma once

#include <atomic>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <vmshadow/result.h>

#include "base/unique_fd.h"

namespace vmshadow::test {

struct TranscriptLine {
  bool from_qemu{};
  std::string text;  ///< without its end of line
};
[[nodiscard]] Result<std::vector<TranscriptLine>> read_transcript(const std::string& path);

/// Plays QEMU's part to one client: says what QEMU said, and insists on hearing what it heard.
class TranscriptPlayer {
 public:
  explicit TranscriptPlayer(std::vector<TranscriptLine> lines);
  ~TranscriptPlayer();
  TranscriptPlayer(const TranscriptPlayer&) = delete;
  TranscriptPlayer& operator=(const TranscriptPlayer&) = delete;
  [[nodiscard]] UniqueFd take_client() { return std::move(client_); }
  /// Waits for the end: success if all of it was played.
  [[nodiscard]] Status finish();

 private:
  Status play();
  std::vector<TranscriptLine> lines_;
  UniqueFd fd_;
  UniqueFd client_;
  Status result_;
  std::thread thread_;
};

/// Stands between a client and QEMU's monitor, passing everything on, descriptors included.
class TranscriptRecorder {
 public:
  explicit TranscriptRecorder(UniqueFd monitor);
  ~TranscriptRecorder();
  TranscriptRecorder(const TranscriptRecorder&) = delete;
  TranscriptRecorder& operator=(const TranscriptRecorder&) = delete;
  [[nodiscard]] UniqueFd take_client() { return std::move(client_); }
  /// Once the client has closed: writes what was said.
  [[nodiscard]] Status finish(const std::string& path);

 private:
  void relay();
  [[nodiscard]] bool pass_on(bool from_qemu);
  UniqueFd monitor_;
  UniqueFd fd_;
  UniqueFd client_;
  std::string unfinished_[2];  ///< a line begun, by the direction
  std::string text_;
  std::thread thread_;
};

}  // namespace vmshadow::test
