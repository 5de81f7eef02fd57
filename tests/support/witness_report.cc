#include "support/witness_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "guest/witness_layout.h"

namespace vmshadow::test {
namespace {

using namespace vmshadow::witness;

std::optional<std::uint64_t> hex_number(std::string_view digits) {
  std::uint64_t value = 0;
  for (const char c : digits) {
    const auto digit = std::string_view("0123456789abcdef").find(c);
    if (digit == std::string_view::npos) return std::nullopt;
    value = value << 4 | digit;
  }
  return value;
}

// A part of a line: cannot be parsed as a whole, but ends as one does.
bool is_tail(std::string_view text) {
  if (text.size() >= kLineBytes - 1) return false;
  const std::size_t digits = std::min<std::size_t>(text.size(), 16);
  return hex_number(text.substr(text.size() - digits)).has_value() &&
         (text.size() <= 16 || text[text.size() - 17] == '#');
}

bool in_sequence(std::span<const WitnessReport> reports) {
  return std::adjacent_find(reports.begin(), reports.end(), [](const auto& a, const auto& b) {
           return b.sequence != a.sequence + 1 || b.writes < a.writes;
         }) == reports.end();
}

bool one_nonce(std::span<const WitnessReport> reports, const WitnessNonce& nonce) {
  return std::all_of(reports.begin(), reports.end(),
                     [&](const auto& report) { return report.nonce == nonce; });
}

std::uint32_t most_bad(std::span<const WitnessReport> reports) {
  std::uint32_t bad = 0;
  for (const auto& report : reports) bad = std::max(bad, report.bad_pages);
  return bad;
}

// See the table at the top of the header.
bool starts_as_due(const WitnessControl& committed, const ConsoleLine& first) {
  const std::string seen = first.text + '\n';
  if (!committed.line_begun) return seen.size() == kLineBytes;
  const std::string_view line = committed.text;
  return seen == line.substr(committed.sent) || seen == line.substr(committed.sent + 1) ||
         (committed.sent + 1 == kLineBytes && seen.size() == kLineBytes);
}

}  // namespace

std::string nonce_text(const WitnessNonce& nonce) {
  std::string text;
  for (const auto byte : nonce) text += fmt::format("{:02x}", byte);
  return text;
}

Result<WitnessReport> parse_witness_report(std::string_view line, MonotonicTime stamp) {
  const auto malformed = [&](std::string_view why) {
    return fail(Errc::invalid_argument, fmt::format("not a witness report ({}): '{}'", why, line));
  };
  if (line.size() != kLineBytes - 1) {
    return malformed(fmt::format("{} characters, not {}", line.size(), kLineBytes - 1));
  }
  if (line.substr(0, 2) != "W " || line[kSequenceAt - 1] != ' ' || line[kWritesAt - 1] != ' ' ||
      line[kBadAt - 1] != ' ' || line[kTailAt - 1] != ' ' || line[kTailAt] != '#') {
    return malformed("its marks are not in place");
  }
  WitnessReport report;
  report.stamp = stamp;
  for (std::size_t i = 0; i < report.nonce.size(); ++i) {
    const auto byte = hex_number(line.substr(kNonceAt + 2 * i, 2));
    if (!byte) return malformed("its nonce is not hexadecimal");
    report.nonce[i] = static_cast<std::uint8_t>(*byte);
  }
  const auto sequence = hex_number(line.substr(kSequenceAt, 16));
  const auto writes = hex_number(line.substr(kWritesAt, 16));
  const auto bad = hex_number(line.substr(kBadAt, 8));
  const auto again = hex_number(line.substr(kTailAt + 1, 16));
  if (!sequence || !writes || !bad || !again) return malformed("a number is not hexadecimal");
  if (*sequence != *again) return malformed("its two sequence numbers differ");
  report.sequence = *sequence;
  report.writes = *writes;
  report.bad_pages = static_cast<std::uint32_t>(*bad);
  return report;
}

Result<std::vector<WitnessReport>> parse_witness_reports(std::span<const ConsoleLine> lines) {
  if (!lines.empty() && is_tail(lines.front().text)) lines = lines.subspan(1);
  std::vector<WitnessReport> reports;
  reports.reserve(lines.size());
  for (const auto& line : lines) {
    VMSHADOW_ASSIGN(auto report, parse_witness_report(line.text, line.stamp));
    reports.push_back(report);
  }
  return reports;
}

Result<WitnessControl> decode_witness_control(ByteSpan page) {
  if (page.size() != kPageBytes ||
      std::memcmp(page.data(), kMagic, sizeof ControlPage::magic) != 0) {
    return fail(Errc::not_found, "the page is not a witness's control page");
  }
  ControlPage raw;
  std::memcpy(&raw, page.data(), sizeof raw);
  if (raw.constants_check != constants_check(raw)) {
    return fail(Errc::corrupt, "the witness's control page does not match its own checksum");
  }
  if (raw.version != kVersion || raw.line_bytes != kLineBytes) {
    return fail(Errc::version, fmt::format("the witness's control page has version {}, not {}",
                                           raw.version, kVersion));
  }
  if (raw.started != 1) {
    return fail(Errc::not_found, "the witness had not begun its reports");
  }
  WitnessControl control;
  control.kind =
      raw.kind == kKindBare ? WitnessControl::Kind::bare : WitnessControl::Kind::linux_kernel;
  std::memcpy(control.nonce.data(), raw.nonce, sizeof raw.nonce);
  control.arena_address = raw.arena_address;
  control.arena_pages = raw.arena_pages;
  control.writes = raw.writes;
  control.verified = raw.verified;
  control.bad_pages = raw.bad;
  if (raw.first_bad_page != kNoPage) control.first_bad_page = raw.first_bad_page;
  for (const DiskCounts& disk : raw.disks) {
    if (disk.slots != 0) control.disks.push_back({disk.slots, disk.issued, disk.acknowledged});
  }
  control.line = raw.line;
  control.line_begun = progress_tag(raw.progress) == line_tag(raw.line);
  if (control.line_begun) {
    control.sent = progress_sent(raw.progress);
    if (control.sent > kLineBytes) {
      return fail(Errc::corrupt,
                  fmt::format("the witness claims to have sent {} bytes of a line of {}",
                              control.sent, kLineBytes));
    }
    control.text.assign(raw.text, kLineBytes);
  }
  if (control.sent == kLineBytes) {
    ++control.line;
    control.line_begun = false;
    control.sent = 0;
    control.text.clear();
  }
  return control;
}

Result<WitnessControl> find_witness_control(const EpochImage& image) {
  const auto& blocks = image.machine().layout.blocks;
  const auto block = std::find_if(blocks.begin(), blocks.end(),
                                  [](const RamBlock& b) { return b.name == "pc.ram"; });
  if (block == blocks.end()) {
    return fail(Errc::not_found, "the epoch has no RAM block \"pc.ram\"");
  }
  std::optional<WitnessControl> found;
  const BlockIndex index{static_cast<std::uint16_t>(block - blocks.begin())};
  VMSHADOW_TRY(image.for_each_page(index, [&](PageNumber page, const std::byte* data) -> Status {
    if (data == nullptr) return {};
    auto control = decode_witness_control({data, kPageBytes});
    if (!control && control.error().code == Errc::not_found) return {};
    const std::string where = fmt::format("page {} of pc.ram", page.value);
    if (!control) return fail(std::move(control).error().with_context(where));
    if (found) {
      return fail(Errc::corrupt, fmt::format("{}: a second control page, after page {}", where,
                                             found->page.value));
    }
    found = *std::move(control);
    found->page = page;
    return {};
  }));
  if (!found) return fail(Errc::not_found, "the epoch's memory holds no witness's control page");
  return *std::move(found);
}

Result<WitnessVerdict> judge_restore(std::span<const ConsoleLine> primary,
                                     const WitnessControl& committed,
                                     std::span<const ConsoleLine> restored) {
  VMSHADOW_ASSIGN(const auto before, parse_witness_reports(primary));
  VMSHADOW_ASSIGN(const auto after, parse_witness_reports(restored));
  if (after.empty()) {
    return fail(Errc::invalid_argument, "the restored guest has not printed a whole line yet");
  }
  const bool has_tail = after.size() < restored.size();
  const std::uint64_t first = after.front().sequence;
  const bool last_byte_was_out = !has_tail && committed.line_begun &&
                                 committed.sent + 1 == kLineBytes && first == committed.line + 1;
  WitnessVerdict verdict;
  verdict.same_run = one_nonce(before, committed.nonce) && one_nonce(after, committed.nonce);
  verdict.bad_pages = std::max({committed.bad_pages, most_bad(before), most_bad(after)});
  verdict.seq_committed = committed.line;
  verdict.seq_restored = has_tail || last_byte_was_out ? first - 1 : first;
  verdict.bytes_continue = starts_as_due(committed, restored.front());
  if (!verdict.bytes_continue) {
    verdict.bytes = fmt::format(" ({} bytes of '{}' were out{}, then came '{}')", committed.sent,
                                committed.text, committed.line_begun ? "" : ", no line begun",
                                restored.front().text);
  }
  verdict.in_sequence = in_sequence(before) && in_sequence(after);
  if (!before.empty()) {
    const std::uint64_t last = before.back().sequence;
    verdict.lines_rolled_back = last >= committed.line ? last - committed.line + 1 : 0;
    verdict.silence = after.front().stamp - before.back().stamp;
  }
  return verdict;
}

std::string WitnessVerdict::text() const {
  return fmt::format(
      "same run: {}, bad pages: {}, committed line {}, restored line {}, bytes continue: {}, "
      "in sequence: {}, rolled back: {} lines, silence: {:.1f} ms{}",
      same_run, bad_pages, seq_committed, seq_restored, bytes_continue, in_sequence,
      lines_rolled_back, std::chrono::duration<double, std::milli>(silence).count(), bytes);
}

WitnessRun examine_run(std::span<const WitnessReport> reports) {
  WitnessRun run;
  run.reports = reports.size();
  if (reports.empty()) return run;
  run.same_run = one_nonce(reports, reports.front().nonce);
  run.in_sequence = in_sequence(reports);
  run.bad_pages = most_bad(reports);
  for (std::size_t i = 1; i < reports.size(); ++i) {
    run.longest_gap = std::max(run.longest_gap, reports[i].stamp - reports[i - 1].stamp);
  }
  const auto span = std::chrono::duration<double>(reports.back().stamp - reports.front().stamp);
  if (span.count() > 0) {
    run.writes_per_s =
        static_cast<double>(reports.back().writes - reports.front().writes) / span.count();
  }
  return run;
}

}  // namespace vmshadow::test
