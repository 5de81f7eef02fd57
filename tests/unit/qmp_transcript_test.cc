// A session and every typed command against what a QEMU 7.2 really said.
#include "support/qmp_transcript.h"

#include <gtest/gtest.h>

#include "qmp/session.h"
#include "support/qmp_scripts.h"

namespace vmshadow::test {
namespace {

class QmpTranscriptTest : public testing::TestWithParam<QmpScript> {};

std::string transcript_path(const std::string& name) {
  return std::string(VMSHADOW_TRANSCRIPTS) + "/" + name + ".jsonl";
}

TEST_P(QmpTranscriptTest, IsUnderstood) {
  auto lines = read_transcript(transcript_path(GetParam().name));
  ASSERT_TRUE(lines) << lines.error().message;
  TranscriptPlayer player(*std::move(lines));
  EventLog events;
  qmp::SessionOptions options;
  options.on_event = events.handler();
  auto session = qmp::Session::adopt(player.take_client(), "the transcript", options);
  ASSERT_TRUE(session) << session.error().message;
  EXPECT_EQ((*session)->version().major, 7);
  EXPECT_EQ((*session)->version().minor, 2);
  GetParam().run(**session, events, false);
  session->reset();  // so that a player that still waits for a command gives up
  const auto played = player.finish();
  EXPECT_TRUE(played) << played.error().message;
}

INSTANTIATE_TEST_SUITE_P(Scripts, QmpTranscriptTest, testing::ValuesIn(qmp_scripts()),
                         [](const auto& instance) { return instance.param.name; });

/// The player itself: a client that says something else than the recorded one is found out.
TEST(QmpTranscriptPlayerTest, NoticesAnotherCommand) {
  auto lines = read_transcript(transcript_path("facts"));
  ASSERT_TRUE(lines) << lines.error().message;
  TranscriptPlayer player(*std::move(lines));
  auto session = qmp::Session::adopt(player.take_client(), "the transcript");
  ASSERT_TRUE(session) << session.error().message;
  EXPECT_FALSE((*session)->execute("query-kvm"));
  const auto played = player.finish();
  ASSERT_FALSE(played);
  EXPECT_NE(played.error().message.find("expected {\"execute\":\"query-status\""),
            std::string::npos)
      << played.error().message;
}

}  // namespace
}  // namespace vmshadow::test
