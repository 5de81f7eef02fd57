// Reading a witness's lines and judging a restored guest by them.
#include "support/witness_report.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "guest/witness_layout.h"

namespace vmshadow::test {
namespace {

constexpr WitnessNonce kNonce = {0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77,
                                 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff};
constexpr WitnessNonce kOtherNonce = {1, 2, 3};

std::string line_text(std::uint64_t sequence, std::uint32_t bad = 0,
                      const WitnessNonce& nonce = kNonce) {
  std::string text(witness::kLineBytes, ' ');
  witness::compose_line(text.data(), nonce.data(), sequence, 1000 + sequence, bad);
  text.pop_back();
  return text;
}

ConsoleLine console_line(std::uint64_t sequence, std::int64_t ms = 0) {
  return {line_text(sequence), MonotonicTime{ms * 1'000'000}, 0};
}

std::vector<ConsoleLine> console_lines(std::uint64_t first, std::uint64_t last) {
  std::vector<ConsoleLine> lines;
  for (auto i = first; i <= last; ++i) {
    lines.push_back(console_line(i, static_cast<std::int64_t>(i) * 10));
  }
  return lines;
}

// The restored console: what is left of line `line` from byte `from` on, then `more` whole lines.
std::vector<ConsoleLine> continued(std::uint64_t line, std::size_t from, std::uint64_t more = 3) {
  std::vector<ConsoleLine> lines{{line_text(line).substr(from), MonotonicTime{}, 0}};
  for (std::uint64_t i = 1; i <= more; ++i) lines.push_back(console_line(line + i));
  return lines;
}

WitnessControl control_at(std::uint64_t line, std::uint32_t sent) {
  WitnessControl control;
  control.nonce = kNonce;
  control.line = line;
  control.line_begun = true;
  control.sent = sent;
  control.text = line_text(line) + '\n';
  return control;
}
WitnessControl control_between(std::uint64_t line) {
  WitnessControl control;
  control.nonce = kNonce;
  control.line = line;
  return control;
}

WitnessVerdict judge(const WitnessControl& committed, std::span<const ConsoleLine> restored) {
  const auto verdict = judge_restore(console_lines(1, 12), committed, restored);
  EXPECT_TRUE(verdict) << verdict.error().message;
  return verdict.value_or(WitnessVerdict{});
}

TEST(WitnessReport, ReadsALine) {
  const auto report = parse_witness_report(line_text(0x1234, 7), MonotonicTime{42});
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->nonce, kNonce);
  EXPECT_EQ(nonce_text(report->nonce), "00112233445566778899aabbccddeeff");
  EXPECT_EQ(report->sequence, 0x1234U);
  EXPECT_EQ(report->writes, 1000U + 0x1234U);
  EXPECT_EQ(report->bad_pages, 7U);
  EXPECT_EQ(report->stamp, MonotonicTime{42});
}

struct BadLine {
  const char* name;
  std::size_t at;
  char put;
  const char* words;
};
class WitnessReportBadLine : public testing::TestWithParam<BadLine> {};

TEST_P(WitnessReportBadLine, IsRefusedWithItsReason) {
  std::string text = line_text(5);
  text[GetParam().at] = GetParam().put;
  const auto report = parse_witness_report(text);
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, Errc::invalid_argument);
  EXPECT_NE(report.error().message.find(GetParam().words), std::string::npos)
      << report.error().message;
}

INSTANTIATE_TEST_SUITE_P(Marks, WitnessReportBadLine,
                         testing::Values(BadLine{"letter", 0, 'X', "marks"},
                                         BadLine{"space", 34, '0', "marks"},
                                         BadLine{"hash", 78, ' ', "marks"},
                                         BadLine{"nonce", 5, 'g', "nonce"},
                                         BadLine{"upper", 40, 'A', "not hexadecimal"},
                                         BadLine{"writes", 60, '-', "not hexadecimal"},
                                         BadLine{"bad", 70, ' ', "not hexadecimal"},
                                         BadLine{"doubled", 94, '6', "sequence numbers differ"}),
                         [](const auto& tested) { return std::string(tested.param.name); });

TEST(WitnessReport, RefusesOtherLengths) {
  for (const auto& text : {std::string(), line_text(5) + "0", line_text(5).substr(1)}) {
    const auto report = parse_witness_report(text);
    ASSERT_FALSE(report);
    EXPECT_NE(report.error().message.find("characters, not 95"), std::string::npos);
  }
}

TEST(WitnessReport, OnlyTheFirstLineMayBeAPart) {
  auto lines = continued(5, 20);
  const auto reports = parse_witness_reports(lines);
  ASSERT_TRUE(reports) << reports.error().message;
  EXPECT_EQ(reports->size(), 3U);
  EXPECT_EQ(reports->front().sequence, 6U);

  lines[2].text = lines[2].text.substr(10);
  EXPECT_FALSE(parse_witness_reports(lines));
  lines = {{"Kernel panic - not syncing", {}, 0}, console_line(7)};
  EXPECT_FALSE(parse_witness_reports(lines));
}

TEST(WitnessRun, CountsGapsAndRates) {
  auto lines = console_lines(1, 5);
  lines.back().stamp = lines.back().stamp + std::chrono::milliseconds(60);
  const auto reports = parse_witness_reports(lines);
  ASSERT_TRUE(reports);
  const WitnessRun run = examine_run(*reports);
  EXPECT_EQ(run.reports, 5U);
  EXPECT_TRUE(run.same_run);
  EXPECT_TRUE(run.in_sequence);
  EXPECT_EQ(run.longest_gap, std::chrono::milliseconds(70));
  EXPECT_NEAR(run.writes_per_s, 4 / 0.1, 0.01);
}

TEST(WitnessRun, SeesMissingLinesAndOtherRuns) {
  std::vector<ConsoleLine> lines{console_line(1), console_line(3)};
  EXPECT_FALSE(examine_run(*parse_witness_reports(lines)).in_sequence);
  lines[1].text = line_text(2, 0, kOtherNonce);
  EXPECT_FALSE(examine_run(*parse_witness_reports(lines)).same_run);
  EXPECT_EQ(examine_run({}).reports, 0U);
}

// ---- the judge

TEST(WitnessJudge, WholeLineAfterACutBetweenLines) {
  const auto verdict = judge(control_between(10), console_lines(10, 13));
  EXPECT_EQ(verdict.seq_committed, 10U);
  EXPECT_EQ(verdict.seq_restored, 10U);
  EXPECT_EQ(verdict.lines_rolled_back, 3U);  // the primary had printed 10, 11 and 12
  EXPECT_TRUE(verdict.continues_exactly()) << verdict.text();
}

TEST(WitnessJudge, EveryCutInsideALine) {
  for (std::uint32_t sent = 0; sent < witness::kLineBytes - 1; ++sent) {
    // The byte in doubt was not out, or was.
    for (const std::size_t from : {sent, sent + 1}) {
      const auto verdict = judge(control_at(10, sent), continued(10, from));
      EXPECT_EQ(verdict.seq_restored, 10U) << sent << " " << from;
      EXPECT_TRUE(verdict.continues_exactly()) << sent << " " << from << " " << verdict.text();
    }
  }
}

TEST(WitnessJudge, TheLastByteOfALine) {
  const std::uint32_t sent = witness::kLineBytes - 1;
  const auto newline_due = judge(control_at(10, sent), continued(10, sent));  // "\n", then line 11
  EXPECT_EQ(newline_due.seq_restored, 10U);
  EXPECT_TRUE(newline_due.continues_exactly()) << newline_due.text();
  const auto newline_out = judge(control_at(10, sent), console_lines(11, 13));
  EXPECT_EQ(newline_out.seq_restored, 10U);
  EXPECT_TRUE(newline_out.continues_exactly()) << newline_out.text();
}

TEST(WitnessJudge, OtherContinuationsAreNotExact) {
  // An older or newer epoch than the committed one came back.
  for (const std::uint64_t first : {9, 11}) {
    const auto verdict = judge(control_between(10), console_lines(first, 13));
    EXPECT_EQ(verdict.seq_restored, first);
    EXPECT_FALSE(verdict.continues_exactly());
  }
  // Two bytes repeated, two bytes lost, a begun line printed again, a part where a whole was due.
  EXPECT_FALSE(judge(control_at(10, 50), continued(10, 48)).continues_exactly());
  EXPECT_FALSE(judge(control_at(10, 50), continued(10, 52)).continues_exactly());
  EXPECT_FALSE(judge(control_at(10, 50), console_lines(10, 13)).continues_exactly());
  EXPECT_FALSE(judge(control_between(10), continued(9, 50)).bytes_continue);
  // Only the very last byte may make a line count as done.
  EXPECT_FALSE(judge(control_at(10, 94), console_lines(11, 13)).continues_exactly());
}

TEST(WitnessJudge, ALostLineIsSeen) {
  auto restored = console_lines(10, 13);
  restored.erase(restored.begin() + 1);
  const auto verdict = judge(control_between(10), restored);
  EXPECT_EQ(verdict.seq_restored, 10U);
  EXPECT_FALSE(verdict.in_sequence);
  EXPECT_FALSE(verdict.continues_exactly());
}

TEST(WitnessJudge, ARebootIsNotTheSameRun) {
  std::vector<ConsoleLine> rebooted{{line_text(10, 0, kOtherNonce), {}, 0}};
  const auto verdict = judge(control_between(10), rebooted);
  EXPECT_FALSE(verdict.same_run);
  EXPECT_FALSE(verdict.continues_exactly());
}

TEST(WitnessJudge, BadPagesAnywhereCount) {
  std::vector<ConsoleLine> restored{{line_text(10, 3), {}, 0}};
  EXPECT_EQ(judge(control_between(10), restored).bad_pages, 3U);
  auto control = control_between(10);
  control.bad_pages = 2;
  const auto verdict = judge(control, console_lines(10, 11));
  EXPECT_EQ(verdict.bad_pages, 2U);
  EXPECT_FALSE(verdict.continues_exactly());
}

TEST(WitnessJudge, SilenceIsMeasuredOnTheHost) {
  const std::vector<ConsoleLine> restored{console_line(10, 500)};
  EXPECT_EQ(judge(control_between(10), restored).silence, std::chrono::milliseconds(500 - 120));
}

TEST(WitnessJudge, NeedsAWholeLine) {
  const std::vector<ConsoleLine> part{{line_text(10).substr(50), {}, 0}};
  const auto verdict = judge_restore({}, control_at(10, 50), part);
  ASSERT_FALSE(verdict);
  EXPECT_NE(verdict.error().message.find("not printed a whole line"), std::string::npos);
}

}  // namespace
}  // namespace vmshadow::test
