#include "support/fio.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "support/command.h"

namespace vmshadow::bench {
namespace {

std::vector<std::string> command(const FioSetting& setting, std::uint64_t bytes) {
  std::vector<std::string> argv = {"fio",
                                   "--name=vmshadow-bench",
                                   "--rw=write",
                                   "--direct=1",
                                   "--ioengine=io_uring",
                                   "--bs=" + setting.block,
                                   fmt::format("--iodepth={}", setting.depth),
                                   fmt::format("--size={}", bytes),
                                   "--end_fsync=1"};
  if (setting.writes_per_sync > 0) {
    argv.push_back(fmt::format("--fdatasync={}", setting.writes_per_sync));
  }
  if (setting.over) argv.emplace_back("--overwrite=1");  // it writes the file first, untimed
  return argv;
}

}  // namespace

std::string FioSetting::text() const {
  const std::string syncs =
      writes_per_sync > 0 ? fmt::format(", a sync every {}", writes_per_sync) : "";
  return fmt::format("bs={} iodepth={}{}{}", block, depth, over ? " over a file" : "", syncs);
}

Status require_fio() {
  if (find_program("fio")) return {};
  return fail(Errc::unsupported,
              "fio is not installed, and it is what ingest is compared with: install the package "
              "'fio' (apt-get install fio), or leave ingest out with --only");
}

Result<std::string> fio_version() {
  VMSHADOW_ASSIGN(std::string text, run_program({"fio", "--version"}));
  return text.substr(0, text.find('\n'));
}

std::string fio_command_text(const FioSetting& setting, std::uint64_t bytes) {
  return fmt::format("{}", fmt::join(command(setting, bytes), " "));
}

Result<double> fio_write(const std::string& directory, const FioSetting& setting,
                         std::uint64_t bytes) {
  std::vector<std::string> argv = command(setting, bytes);
  argv.push_back("--directory=" + directory);
  argv.push_back("--unlink=1");
  argv.push_back("--output-format=json");
  VMSHADOW_ASSIGN(const std::string output, run_program(argv));
  const auto start = output.find('{');  // notes may stand before it
  const auto json = nlohmann::json::parse(
      start == std::string::npos ? std::string() : output.substr(start), nullptr, false);
  const auto at = nlohmann::json::json_pointer("/jobs/0/write/bw_bytes");
  if (json.is_discarded() || !json.contains(at) || json[at].get<double>() <= 0) {
    return fail(Errc::protocol, "fio printed no write bandwidth");
  }
  return json[at].get<double>();
}

}  // namespace vmshadow::bench
