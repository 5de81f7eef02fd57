// shadow-replay's own commands on a small store made here: what they say, what they leave behind,
// and how they reach a store that runs. No QEMU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <poll.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "app/control_socket.h"
#include "crypt/key_directory.h"
#include "format/journal.h"
#include "format/record.h"
#include "io/append_file.h"
#include "store/store.h"
#include "support/epoch_maker.h"
#include "support/fault_rig.h"
#include "support/prerequisite.h"
#include "support/replication_rig.h"

namespace vmshadow::test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using Json = nlohmann::json;

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

class ReplayCli : public ::testing::Test {
 protected:
  /// "web1" with epochs 0 (full), 1 and 2 of `ram_pages` pages, most of them zero.
  void make_store(std::uint64_t ram_pages = 64, std::uint64_t data_pages = 3,
                  const store::StoreOptions& options = {}) {
    auto opened = must(store::Store::open(
        store(), system_clock(), [] { return io::make_file_system(io::FileBackend::syscalls); },
        options));
    ship_epochs(*opened, ram_pages, data_pages);
  }
  static void ship_epochs(store::Store& store, std::uint64_t ram_pages = 64,
                          std::uint64_t data_pages = 3) {
    auto session = must(store.open_session("web1", "a test"));
    EpochMaker maker("web1", ram_pages);
    std::vector<EpochMaker::PageWrite> writes;
    for (std::uint64_t page = 0; page < data_pages; ++page) writes.push_back({page, page + 1, 0});
    must(ship(*session, maker.make(session->generation(), Epoch{0}, true, writes)));
    must(ship(*session, maker.make(session->generation(), Epoch{1}, false,
                                   {{1, 77, 0}, {2, 78, 0}, {40, 79, 0}})));
    must(ship(*session, maker.make(session->generation(), Epoch{2}, false, {{0, 80, 1}})));
  }
  std::string store() const { return folder_.file("store"); }
  std::string path(const std::string& name) const { return folder_.file(name); }

  Ran replay(std::vector<std::string> args) const {
    args.insert(args.begin(), {program_path("shadow-replay"), "--store", store()});
    return must(run_program(std::move(args)));
  }
  Json replay_json(std::vector<std::string> args, int code = 0) const {
    args.insert(args.begin(), "--json");
    const Ran ran = replay(std::move(args));
    EXPECT_EQ(ran.status.code, code) << ran.err;
    EXPECT_EQ(std::count(ran.out.begin(), ran.out.end(), '\n'), 1) << ran.out;
    return Json::parse(ran.out, nullptr, false);
  }
  void expect_fails(std::vector<std::string> args, const std::vector<std::string>& words,
                    int code = 1) const {
    const Ran ran = replay(std::move(args));
    EXPECT_EQ(ran.status.code, code) << ran.out << ran.err;
    expect_sentence(ran.err, "shadow-replay", words);
  }

  TempDir folder_;
};

TEST_F(ReplayCli, EveryCommandTeachesItself) {
  const Ran all = must(run_program({program_path("shadow-replay"), "--help"}));
  EXPECT_TRUE(all.status.success());
  for (const char* command : {"list", "show", "diff", "verify", "restore", "export", "pin", "unpin",
                              "retention", "quota", "status"}) {
    EXPECT_THAT(all.out, HasSubstr(command));
    const Ran help = must(run_program({program_path("shadow-replay"), command, "--help"}));
    EXPECT_TRUE(help.status.success()) << command << help.err;
    EXPECT_THAT(help.out, HasSubstr("Exit codes:")) << command;
    for (std::size_t at = 0; at < help.out.size();) {
      const std::size_t end = std::min(help.out.find('\n', at), help.out.size());
      EXPECT_LE(end - at, 110u) << help.out.substr(at, end - at);
      at = end + 1;
    }
  }
}

TEST_F(ReplayCli, ShowIsOneEpochInDetail) {
  make_store();
  const Json newest = replay_json({"show", "web1"});
  EXPECT_EQ(newest["epoch"], 2);
  EXPECT_EQ(newest["full"], false);
  EXPECT_EQ(newest["pinned"], false);
  EXPECT_EQ(newest["machine"]["ram_blocks"][0]["name"], "pc.ram");
  EXPECT_EQ(newest["machine"]["ram_blocks"][0]["pages"], 64);
  const Ran text = replay({"show", "--epoch", "0"});
  EXPECT_TRUE(text.status.success()) << text.err;
  EXPECT_THAT(text.out, HasSubstr("0 of generation 1, full"));
  EXPECT_THAT(text.out, HasSubstr("pc.bios"));
  expect_fails({"show", "web1", "--epoch", "9"}, {"VM 'web1' has no committed epoch 9"});
  expect_fails({"show", "web1", "--epoch", "x"}, {"neither a number nor 'latest'"}, 2);
}

TEST_F(ReplayCli, DiffTellsWhatChanged) {
  make_store();
  const Json diff = replay_json({"diff", "web1", "0", "1", "--bytes"});
  EXPECT_EQ(diff["same"], false);
  EXPECT_EQ(diff["pages_differing"], 3);
  EXPECT_EQ(diff["blocks"][0]["ranges"], Json::parse("[[1,2],[40,1]]"));
  EXPECT_GT(diff["blocks"][0]["bytes_differing"], 3 * 4000);
  EXPECT_EQ(diff["blocks"][1]["pages_differing"], 0);
  const Json one = replay_json({"diff", "web1", "0", "1", "--ranges", "1"});
  EXPECT_EQ(one["blocks"][0]["ranges"].size(), 1u);
  EXPECT_EQ(one["blocks"][0]["ranges_total"], 2);
  const Ran text = replay({"diff", "web1", "0", "2"});
  EXPECT_TRUE(text.status.success()) << text.err;
  EXPECT_THAT(text.out, HasSubstr("pc.ram: 3 of 64 pages differ"));
  EXPECT_THAT(text.out, HasSubstr("pages 1-2  (offset 0x1000, 8192 bytes)"));
  EXPECT_THAT(text.out, HasSubstr("pc.bios: 1 of 8 pages differ"));
  EXPECT_EQ(replay_json({"diff", "web1", "1", "1"})["same"], true);
  expect_fails({"diff", "web1", "0", "9"}, {"no committed epoch 9"});
  expect_fails({"diff", "web1", "0", "latest"}, {"'latest' is not the number of an epoch"}, 2);
}

/// Flips a byte in the middle of the first page group of an epoch; its file and offset.
std::pair<std::string, std::uint64_t> damage_page_group(const std::string& store,
                                                        std::uint64_t epoch) {
  for (const auto& entry : fs::directory_iterator(store + "/segments")) {
    std::fstream file(entry.path(), std::ios::binary | std::ios::in | std::ios::out);
    const std::string bytes(std::istreambuf_iterator<char>(file), {});
    const ByteSpan journal = std::as_bytes(std::span(bytes));
    for (std::uint64_t at = 0; at + format::kRecordPrefixBytes <= journal.size();
         at += format::kRecordAlignment) {
      const auto prefix = format::decode_prefix(journal.subspan(at));
      if (!prefix || prefix->head.type != format::RecordType::page_group ||
          prefix->head.epoch.value != epoch) {
        continue;
      }
      const std::uint64_t victim = at + format::kRecordPrefixBytes + prefix->body_bytes / 2;
      file.clear();
      file.seekp(static_cast<std::streamoff>(victim));
      file.put(static_cast<char>(bytes[victim] ^ 1));
      return {entry.path().filename(), at};
    }
  }
  throw std::runtime_error("no page group of this epoch");
}

TEST_F(ReplayCli, VerifyIsQuickOrDeep) {
  make_store();
  const Json quick = replay_json({"verify"});
  EXPECT_EQ(quick["deep"], false);
  EXPECT_TRUE(quick["bytes"].is_null());
  EXPECT_EQ(quick["vms"][0]["epochs"].size(), 3u);
  EXPECT_THAT(replay({"verify"}).out, HasSubstr("verify --deep proves every byte"));
  const Json deep = replay_json({"verify", "web1", "--deep"});
  EXPECT_EQ(deep["deep"], true);
  EXPECT_GT(deep["records"], 8);
  EXPECT_EQ(deep["damaged"], Json::array());

  const auto [file, offset] = damage_page_group(store(), 1);
  const Json damaged = replay_json({"verify", "--deep"}, 1);
  ASSERT_EQ(damaged["damaged"].size(), 1u);
  EXPECT_EQ(damaged["damaged"][0]["file"], file);
  EXPECT_EQ(damaged["damaged"][0]["offset"], offset);
  EXPECT_EQ(damaged["damaged"][0]["epoch"], 1);
  EXPECT_EQ(damaged["damaged"][0]["vm"], "web1");
  expect_fails({"verify", "--deep"}, {file, "offset " + std::to_string(offset), "epoch 1 of VM"});
}

/// Flips a byte in the last record of a type; where it begins.
std::uint64_t damage_last(const std::string& segment, format::RecordType type) {
  std::fstream file(segment, std::ios::binary | std::ios::in | std::ios::out);
  const std::string bytes(std::istreambuf_iterator<char>(file), {});
  const ByteSpan journal = std::as_bytes(std::span(bytes));
  std::uint64_t last = 0;
  for (std::uint64_t at = 0; at + format::kRecordPrefixBytes <= journal.size();
       at += format::kRecordAlignment) {
    const auto prefix = format::decode_prefix(journal.subspan(at));
    if (prefix && prefix->head.type == type) last = at;
  }
  if (last == 0) throw std::runtime_error("no record of this type");
  const std::uint64_t victim = last + format::kRecordPrefixBytes;
  file.clear();
  file.seekp(static_cast<std::streamoff>(victim));
  file.put(static_cast<char>(bytes[victim] ^ 1));
  return last;
}

// A disk that loses what it had called durable, at the end of the journal, looks like a writer that
// died: what may be lost is named.
TEST_F(ReplayCli, VerifyNamesTheCommitsOfATornTail) {
  {
    store::StoreOptions options;
    options.log.segment_bytes = 1 << 20;
    auto opened = must(store::Store::open(
        store(), system_clock(), [] { return io::make_file_system(io::FileBackend::syscalls); },
        options));
    ship_epochs(*opened);
    fs::copy(store(), path("as-killed"), fs::copy_options::recursive);
  }
  fs::remove_all(store());
  fs::rename(path("as-killed"), store());
  EXPECT_EQ(replay_json({"verify", "--deep"})["torn_tail_commits"], Json::array());
  const std::string last = store() + "/segments/" + names_in(store() + "/segments").back();
  damage_last(last, format::RecordType::mark);
  const Json torn = replay_json({"verify", "--deep"});
  EXPECT_GT(torn["torn_tail_bytes"], 0);
  EXPECT_EQ(torn["torn_tail_commits"], Json::array({"epoch 2 of VM 'web1'"}));
  EXPECT_THAT(replay({"verify", "--deep"}).out,
              HasSubstr("epoch 2 of VM 'web1' is in these bytes: it was never acknowledged, "
                        "unless the disk lost"));
}

// ---- encryption

TEST_F(ReplayCli, EncryptedEpochsNeedTheirKey) {
  fs::create_directory(path("keys"));
  const auto write_key = [&](char digit, ::mode_t mode = 0600) {
    std::ofstream(path("keys/web1.key")) << std::string(64, digit) << '\n';
    ASSERT_EQ(::chmod(path("keys/web1.key").c_str(), mode), 0);
  };
  write_key('a');
  store::StoreOptions options;
  options.keys = std::make_shared<crypt::KeyDirectory>(path("keys"));
  make_store(64, 3, options);

  EXPECT_EQ(replay_json({"list", "web1"})["vms"][0]["epochs"][2]["encrypted"], true);
  EXPECT_THAT(replay({"list", "web1"}).out, HasSubstr("  encrypted"));
  const std::vector<std::string> lost = {"VM 'web1' has no key",
                                         "without their key nobody can read them"};
  expect_fails({"show", "web1"}, lost);
  const Ran quick = replay({"verify"});
  EXPECT_TRUE(quick.status.success()) << quick.err;
  EXPECT_THAT(quick.out, HasSubstr("encrypted epochs of VM 'web1' were not opened"));
  expect_fails({"verify", "--deep"}, {"pages of 1 VM(s) were not read", lost[0]});

  const std::vector<std::string> keys = {"--keys", path("keys")};
  const auto with = [](std::vector<std::string> args, const std::vector<std::string>& more) {
    args.insert(args.end(), more.begin(), more.end());
    return args;
  };
  EXPECT_EQ(replay_json(with({"show", "web1"}, keys))["machine"]["ram_blocks"][0]["pages"], 64);
  EXPECT_EQ(replay_json(with({"diff", "web1", "0", "1"}, keys))["pages_differing"], 3);
  EXPECT_EQ(replay_json(with({"verify", "--deep"}, keys))["unopened"], Json::object());
  const std::string print = "cat " + path("keys") + "/\"$VMSHADOW_VM\".key;:";
  const Ran exported = replay({"export", "web1", "--epoch", "1", "--format", "raw", "--out",
                               path("raw"), "--key-command", print});
  EXPECT_TRUE(exported.status.success()) << exported.err;
  expect_fails(with(with({"show", "web1"}, keys), {"--key-command", print}), {"excludes"}, 2);

  write_key('b');
  expect_fails(with({"show", "web1"}, keys),
               {"the key of VM 'web1' is wrong", "it was sealed with the key"});
  write_key('a', 0644);
  expect_fails(with({"show", "web1"}, keys), {"(mode 0644)", "chmod 600"});
}

// ---- export

TEST_F(ReplayCli, ExportIsThereWholeAndIsNotReplacedUnasked) {
  make_store();
  const Json raw =
      replay_json({"export", "web1", "--epoch", "1", "--format", "raw", "--out", path("raw")});
  EXPECT_EQ(raw["files"].size(), 4u);
  EXPECT_EQ(raw["pages"], 4);
  EXPECT_EQ(fs::file_size(path("raw/pc.ram.ram")), 64 * kPageBytes);
  std::ifstream ram(path("raw/pc.ram.ram"), std::ios::binary);
  const std::string bytes(std::istreambuf_iterator<char>(ram), {});
  const auto page40 = page_of(79);
  EXPECT_EQ(std::memcmp(bytes.data() + 40 * kPageBytes, page40.data(), kPageBytes), 0);

  std::vector<std::string> again{"export", "web1", "--format", "raw", "--out", path("raw")};
  expect_fails(again, {"'" + path("raw") + "' exists", "--force"});
  again.emplace_back("--force");
  EXPECT_TRUE(replay(again).status.success());

  // What this test's maker calls device state is no stream's: nothing is begun.
  expect_fails({"export", "web1", "--format", "migration", "--out", path("file")},
               {"device state lacks its end"});
  // This store's machine has no type: no map to make a core of.
  expect_fails({"export", "web1", "--format", "elf", "--out", path("core")},
               {"no machine type", "--format raw"});
  expect_fails({"export", "web1", "--format", "tar", "--out", path("x")}, {"tar"}, 2);
  EXPECT_THAT(names_in(folder_.path()), ::testing::ElementsAre("raw", "store"));
}

TEST_F(ReplayCli, AFileSizeLimitLeavesNothing) {
  make_store();
  const Ran ran = must(
      run_program({"sh", "-c", "ulimit -f 8; exec \"$@\"", "sh", program_path("shadow-replay"),
                   "--store", store(), "export", "web1", "--format", "raw", "--out", path("out")}));
  EXPECT_EQ(ran.status.code, 1) << ran.err << ran.status.text();
  expect_sentence(ran.err, "shadow-replay", {path("out"), "File too large"});
  EXPECT_THAT(names_in(folder_.path()), ::testing::ElementsAre("store"));
}

TEST_F(ReplayCli, AFullDiskLeavesNothing) {
  make_store(4096, 2000);
  fs::create_directory(path("small"));
  // A file system of its own, in a mount namespace of its own.
  const std::string script =
      "mount -t tmpfs -o size=1m none \"$1\" || exit 77; dir=$1; shift; \"$@\"; code=$?; "
      "ls -A \"$dir\"; exit $code";
  const Ran ran = must(run_program({"unshare", "-rm", "sh", "-c", script, "sh", path("small"),
                                    program_path("shadow-replay"), "--store", store(), "export",
                                    "web1", "--format", "raw", "--out", path("small/out")}));
  if (ran.status.code == 77 || ran.err.find("unshare") != std::string::npos) {
    VMSHADOW_REQUIRE(Status(fail(Errc::permission, "no mount namespace of our own: " + ran.err)));
  }
  EXPECT_EQ(ran.status.code, 1) << ran.err;
  expect_sentence(ran.err, "shadow-replay",
                  {path("small/out"), "No space left", "nothing of the export was kept"});
  EXPECT_EQ(ran.out, "");
}

TEST_F(ReplayCli, AnInterruptedExportIsThereWholeOrNotAtAll) {
  make_store(16384, 16000);
  fs::create_directory(path("out"));
  ProcessOptions options;
  options.argv = {program_path("shadow-replay"),
                  "--store",
                  store(),
                  "export",
                  "web1",
                  "--epoch",
                  "0",
                  "--format",
                  "raw",
                  "--out",
                  path("out/file")};
  options.stdout_file = path("stdout");
  options.stderr_file = path("stderr");
  Process process = must(Process::spawn(options));
  while (names_in(path("out")).empty() && process.running()) ::poll(nullptr, 0, 1);
  static_cast<void>(process.signal(SIGINT));  // it may have ended just now
  const ExitStatus status = must(process.wait(io::deadline_after(std::chrono::seconds(60))));
  if (status.success()) {
    EXPECT_THAT(names_in(path("out")), ::testing::ElementsAre("file"));
  } else {
    EXPECT_EQ(status.text(), "exit code 1");
    EXPECT_THAT(names_in(path("out")), IsEmpty());
    std::ifstream file(path("stderr"));
    const std::string said(std::istreambuf_iterator<char>(file), {});
    expect_sentence(said, "shadow-replay", {"interrupted"});
  }
}

// ---- pins and retention

TEST_F(ReplayCli, ARunningStoreIsAskedThroughItsSocket) {
  make_store();
  StoreProgram program = must(StoreProgram::start(store()));
  struct stat status {};
  ASSERT_EQ(::stat((store() + "/control.sock").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  const auto answer = app::call_store(store(), app::StatusRequest{});
  ASSERT_TRUE(answer && *answer) << answer->error().message;
  EXPECT_EQ((**answer)["pid"], program.process().pid());
  EXPECT_EQ((**answer)["epochs"], 3);
  // Reading does not mind the socket.
  EXPECT_TRUE(replay({"list"}).status.success());
  EXPECT_TRUE(replay({"verify", "--deep"}).status.success());
  EXPECT_EQ(replay_json({"pin", "web1", "1", "2"})["pinned"], Json::parse("[1,2]"));
  EXPECT_THAT(program.messages(), HasSubstr(R"(control: {"command":"pin","vm":"web1","epoch":1})"));
  EXPECT_EQ(replay_json({"retention", "web1"})["pins"], Json::parse("[1,2]"));
  EXPECT_EQ(replay_json({"unpin", "web1", "2"})["unpinned"], Json::parse("[2]"));
  EXPECT_EQ(replay_json({"show", "web1", "--epoch", "1"})["pinned"], true);
  EXPECT_EQ(replay_json({"show", "web1", "--epoch", "2"})["pinned"], false);
  EXPECT_THAT(replay({"list", "web1"}).out, HasSubstr("  pin"));
  EXPECT_TRUE(replay({"retention", "web1", "set", "window=1h,minutely=2h"}).status.success());
  EXPECT_THAT(replay_json({"retention", "web1"})["retention"].get<std::string>(),
              HasSubstr("window=1h"));
  EXPECT_EQ(replay_json({"quota", "web1", "2G"})["quota_bytes"], std::uint64_t{2} << 30);
  const Json running = replay_json({"status", "--price", "ssd=0.5"});
  EXPECT_EQ(running["usage"][0]["quota_bytes"], std::uint64_t{2} << 30);
  EXPECT_GT(running["usage"][0]["live_bytes"], 0);
  EXPECT_GT(running["tiers"][0]["monthly_cost"].get<double>(), 0.0);
  EXPECT_THAT(replay({"status"}).out, HasSubstr("2.0 GiB"));
  EXPECT_TRUE(replay({"quota", "web1", "none"}).status.success());
  expect_fails({"quota", "web1", "much"}, {"'much' is neither a size"}, 2);
  for (const std::string price : {"tape=1", "ssd", "ssd=", "ssd=-1", "ssd=nan"}) {
    expect_fails({"status", "--price", price}, {"'" + price + "' is not of the form"}, 2);
  }
  expect_fails({"pin", "web1", "9"}, {"9"});
  expect_fails({"pin", "web9", "1"}, {"web9"});
  expect_fails({"retention", "web1", "set", "window=soon"}, {"soon"});

  // Killed, it leaves its socket behind. Nobody answers there: the store is opened here.
  program.process().kill();
  EXPECT_TRUE(fs::is_socket(store() + "/control.sock"));
  expect_fails({"status"}, {"no vmshadow-store has", "look with list and verify"});
  EXPECT_EQ(replay_json({"retention", "web1"})["pins"], Json::parse("[1]"));
  EXPECT_TRUE(replay({"pin", "web1", "0"}).status.success());
  EXPECT_EQ(replay_json({"retention", "web1"})["pins"], Json::parse("[0,1]"));
  EXPECT_TRUE(replay({"retention", "web1", "set", "default"}).status.success());
  StoreProgram next = must(StoreProgram::start(store()));
  EXPECT_TRUE(*app::call_store(store(), app::StatusRequest{}));
  EXPECT_EQ(must(next.stop()).text(), "exit code 0");
  EXPECT_FALSE(fs::exists(store() + "/control.sock"));
}

TEST_F(ReplayCli, AStoreWithoutItsSocketTakesEpochsAllTheSame) {
  make_store();
  std::ofstream(store() + "/control.sock") << "in the way";
  StoreProgram program = must(StoreProgram::start(store()));
  EXPECT_THAT(program.messages(), HasSubstr("no control socket"));
  EXPECT_THAT(program.messages(), HasSubstr("is no socket: remove it"));
  expect_fails(
      {"pin", "web1", "1"},
      {"locked by process " + std::to_string(program.process().pid()), "serves no control.sock"});
  EXPECT_EQ(must(program.stop()).text(), "exit code 0");
}

TEST_F(ReplayCli, WhatCannotBeAskedIsRefusedBeforeTheStoreIs) {
  make_store();
  const Ran shown = replay({"retention", "web1"});
  EXPECT_TRUE(shown.status.success()) << shown.err;
  EXPECT_THAT(shown.out, HasSubstr("VM 'web1': "));
  EXPECT_EQ(replay_json({"retention", "web1", "show"})["vm"], "web1");
  expect_fails({"retention", "nobody"}, {"no VM 'nobody'"});
  expect_fails({"retention", "web1", "set"}, {"retention VM set POLICY"}, 2);
  expect_fails({"retention", "web1", "set", "\x1b[2J"}, {"printable characters"});
  expect_fails({"pin", "web1", "newest"}, {"'newest' is not the number of an epoch"}, 2);
  expect_fails({"pin", "web1"}, {"epochs"}, 2);
  const Ran none = must(
      run_program({program_path("shadow-replay"), "--store", path("none"), "pin", "web1", "1"}));
  EXPECT_EQ(none.status.code, 1);
  expect_sentence(none.err, "shadow-replay", {"there is no store '" + path("none") + "'"});
  EXPECT_FALSE(fs::exists(path("none"))) << "asking makes no store";
}

}  // namespace
}  // namespace vmshadow::test
