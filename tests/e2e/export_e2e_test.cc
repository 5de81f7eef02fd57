// Exports of a real guest, read by the programs they are for: a QEMU that takes the migration file,
// gdb and readelf that read the core; and the memory map, against QEMU's own.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <regex>

#include "replay/guest_map.h"
#include "store/reader.h"
#include "support/fault_rig.h"
#include "support/prerequisite.h"

namespace vmshadow::test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using Json = nlohmann::json;
using std::chrono::seconds;

constexpr const char* kQemu = "qemu-system-x86_64";

Status program_available(const std::string& program) {
  const auto ran = run_program({program, "--version"});
  if (ran && ran->status.success()) return {};
  return fail(Errc::not_found, program + " is missing: install it");
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// A store with some epochs of "vm1", made once: none of these tests changes it.
class ExportE2e : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (!guest_available({})) return;
    rig_ = std::make_unique<FaultRig>();
    StoreProgram store = must(StoreProgram::start(rig_->store_directory()));
    SidecarProgram sidecar = rig_->protect(store.address(), 8);
    EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
    EXPECT_EQ(must(store.stop()).text(), "exit code 0");
    newest_ = *acknowledged_epochs(sidecar).rbegin();
  }
  static void TearDownTestSuite() { rig_.reset(); }
  void SetUp() override { VMSHADOW_REQUIRE(guest_available({})); }

  static std::string store() { return rig_->store_directory(); }
  std::string path(const std::string& name) const { return folder_.file(name); }

  static Json replay(std::vector<std::string> args) {
    args.insert(args.begin(), {program_path("shadow-replay"), "--store", store(), "--json"});
    const Ran ran = must(run_program(std::move(args)));
    EXPECT_TRUE(ran.status.success()) << ran.err;
    return Json::parse(ran.out, nullptr, false);
  }
  Json export_as(const std::string& format, const std::string& name,
                 const std::string& epoch = "latest") const {
    return replay({"export", "vm1", "--epoch", epoch, "--format", format, "--out", path(name)});
  }
  static std::unique_ptr<EpochImage> image(std::uint64_t epoch = newest_) {
    return must(must(store::Reader::open(store()))->open("vm1", Epoch{epoch}));
  }

  TempDir folder_;
  static std::unique_ptr<FaultRig> rig_;
  static std::uint64_t newest_;
};
std::unique_ptr<FaultRig> ExportE2e::rig_;
std::uint64_t ExportE2e::newest_ = 0;

// The exported file alone brings the guest back: the witness goes on where the epoch was cut.
TEST_F(ExportE2e, AQemuTakesTheMigrationFileAndTheWitnessGoesOn) {
  for (const std::uint64_t epoch : {newest_, newest_ - 3}) {
    const std::string file = "file-" + std::to_string(epoch);
    export_as("migration", file, std::to_string(epoch));
    const TempDir directory;
    const auto console = must(Console::listen(directory.file("witness")));
    ProcessOptions options;
    options.argv = rig_->guest().argv();
    const std::string original = rig_->guest().directory().path();
    for (std::string& argument : options.argv) {
      if (const auto at = argument.find(original); at != std::string::npos) {
        argument.replace(at, original.size(), directory.path());
      }
    }
    options.argv.insert(options.argv.end(), {"-incoming", "exec:cat " + path(file)});
    options.env = rig_->guest().env();
    options.stdout_file = options.stderr_file = directory.file("messages");
    Process qemu = must(Process::spawn(options));
    const auto told = console->wait_for_lines(20, io::deadline_after(seconds(60)));
    ASSERT_TRUE(told) << told.error().message << read_file(directory.file("messages"));
    const WitnessControl control = must(find_witness_control(*image(epoch)));
    const WitnessVerdict verdict =
        must(judge_restore(rig_->guest().witness().lines(), control, console->lines()));
    EXPECT_TRUE(verdict.continues_exactly()) << verdict.text();
  }
}

TEST_F(ExportE2e, GdbAndReadelfReadTheCore) {
  VMSHADOW_REQUIRE(program_available("gdb"));
  VMSHADOW_REQUIRE(program_available("readelf"));
  const Json report = export_as("elf", "core");
  const auto epoch = image();
  const WitnessControl control = must(find_witness_control(*epoch));
  const auto gdb = [&](const std::string& command) {
    const Ran ran =
        must(run_program({"gdb", "-nx", "-batch", "-core", path("core"), "-ex", command}));
    return ran.out + ran.err;
  };
  // The control page, at the place in pc.ram where the image has it: its guest-physical address.
  EXPECT_THAT(gdb(fmt::format("x/s {:#x}", control.page.value * kPageBytes)),
              HasSubstr("\"VMSHADOW-WITNESS"));
  // The arena, at the address where the guest itself says it is: each page begins with the nonce.
  std::uint32_t nonce = 0;
  std::memcpy(&nonce, control.nonce.data(), sizeof nonce);
  for (const std::uint64_t page : {std::uint64_t{0}, control.arena_pages - 1}) {
    EXPECT_THAT(gdb(fmt::format("x/wx {:#x}", control.arena_address + page * kPageBytes)),
                HasSubstr(fmt::format("0x{:08x}", nonce)));
  }
  // The reset vector: the last 16 bytes of the firmware.
  const auto& blocks = epoch->machine().layout.blocks;
  const auto bios = std::find_if(blocks.begin(), blocks.end(),
                                 [](const RamBlock& block) { return block.name == "pc.bios"; });
  ASSERT_NE(bios, blocks.end());
  std::vector<std::byte> page(kPageBytes);
  must(epoch->read_page(BlockIndex{static_cast<std::uint16_t>(bios - blocks.begin())},
                        PageNumber{bios->pages() - 1}, page));
  std::uint64_t reset = 0;
  std::memcpy(&reset, page.data() + kPageBytes - 16, sizeof reset);
  EXPECT_NE(reset, 0u);
  EXPECT_THAT(gdb("x/gx 0xfffffff0"), HasSubstr(fmt::format("0x{:016x}", reset)));

  const Ran headers = must(run_program({"readelf", "-lW", path("core")}));
  EXPECT_TRUE(headers.status.success());
  EXPECT_EQ(headers.err, "");
  EXPECT_THAT(headers.out, HasSubstr("CORE (Core file)"));
  EXPECT_THAT(headers.out, ::testing::ContainsRegex("LOAD +0x001000 0x0000000000000000 0x0+ 0x"));
  const Ran notes = must(run_program({"readelf", "-nW", path("core")}));
  EXPECT_THAT(notes.out, HasSubstr("VMSHADOW"));
  EXPECT_EQ(notes.err, "");
  for (const auto& left_out : report["left_out"]) EXPECT_NE(left_out, "pc.ram");
}

TEST_F(ExportE2e, RawIsTheEpochByteForByte) {
  const Json report = export_as("raw", "raw");
  const auto epoch = image();
  const auto& blocks = epoch->machine().layout.blocks;
  ASSERT_EQ(report["files"].size(), blocks.size() + 2);
  std::vector<std::byte> page(kPageBytes);
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const std::string bytes = read_file(report["files"][i]["path"].get<std::string>());
    ASSERT_EQ(bytes.size(), blocks[i].bytes) << blocks[i].name;
    std::uint64_t differing = 0;
    for (std::uint64_t number = 0; number < blocks[i].pages(); ++number) {
      must(epoch->read_page(BlockIndex{static_cast<std::uint16_t>(i)}, PageNumber{number}, page));
      differing += std::memcmp(bytes.data() + number * kPageBytes, page.data(), kPageBytes) != 0;
    }
    EXPECT_EQ(differing, 0u) << blocks[i].name;
  }
  EXPECT_EQ(Json::parse(read_file(path("raw/machine.json")))["accelerator"],
            rig_->guest().accelerator() == Accelerator::kvm ? "kvm" : "tcg");
  EXPECT_EQ(fs::file_size(path("raw/device_state.bin")), must(epoch->device_state()).size());
}

TEST_F(ExportE2e, AnEpochsPagesAreWhatDiffersFromTheOneBefore) {
  const Json diff =
      replay({"diff", "vm1", std::to_string(newest_ - 1), std::to_string(newest_), "--bytes"});
  EXPECT_EQ(diff["b"]["full"], false);
  EXPECT_EQ(diff["pages_differing"], diff["b"]["pages"]);
  EXPECT_GT(diff["pages_differing"], 0);
  const Json far = replay({"diff", "vm1", "0", std::to_string(newest_)});
  EXPECT_GT(far["pages_differing"], 0);
}

TEST_F(ExportE2e, ShowNamesTheMachine) {
  const Json shown = replay({"show", "vm1"});
  const Json& machine = shown["machine"];
  EXPECT_EQ(shown["epoch"], newest_);
  EXPECT_THAT(machine["machine_type"].get<std::string>(), HasSubstr("pc-i440fx-"));
  EXPECT_THAT(machine["qemu_version"].get<std::string>(), ::testing::ContainsRegex("^[0-9]+\\."));
  EXPECT_EQ(machine["argv"].size(), rig_->guest().argv().size());
  EXPECT_GT(shown["device_bytes"], 1000);
}

// ---- the memory map

struct MappedRange {
  std::uint64_t address, last, offset;
};

/// Main RAM's stretches in `info mtree` of a QEMU that never runs its guest.
std::vector<MappedRange> ram_in_qemu(const std::string& machine, std::uint64_t mib) {
  const std::string conversation =
      R"({"execute":"qmp_capabilities"} )"
      R"({"execute":"human-monitor-command","arguments":{"command-line":"info mtree"}} )"
      R"({"execute":"quit"})";
  const Ran ran =
      must(run_program({"sh", "-c",
                        "printf '%s' \"$1\" | exec \"$2\" -nodefaults -display none -S -accel tcg "
                        "-machine \"$3\" -m \"$4\" -qmp stdio",
                        "sh", conversation, kQemu, machine, std::to_string(mib)}));
  static const std::regex line(
      R"(([0-9a-f]{16})-([0-9a-f]{16}) \([^)]*\): alias ram-(?:below|above)-4g @\S+ ([0-9a-f]{16})-)");
  std::vector<MappedRange> ranges;
  for (std::sregex_iterator at(ran.out.begin(), ran.out.end(), line), end; at != end; ++at) {
    const auto number = [&](int group) { return std::stoull((*at)[group].str(), nullptr, 16); };
    const MappedRange range{number(1), number(2), number(3)};
    const bool known = std::any_of(ranges.begin(), ranges.end(), [&](const MappedRange& other) {
      return other.address == range.address;
    });
    if (!known) ranges.push_back(range);
  }
  EXPECT_FALSE(ranges.empty()) << ran.out << ran.err;
  return ranges;
}

TEST(GuestMapE2e, IsTheOneQemuMakes) {
  VMSHADOW_REQUIRE(program_available(kQemu));
  struct Case {
    const char* machine;
    const char* type;
    std::uint64_t mib;
  };
  const Case cases[] = {
      {"pc", "pc-i440fx-7.2", 1024},
      {"pc", "pc-i440fx-7.2", 3583},
      {"pc", "pc-i440fx-7.2", 3584},
      {"pc", "pc-i440fx-7.2", 6144},
      {"pc,max-ram-below-4g=1G", "pc-i440fx-7.2", 1024},
      {"pc,max-ram-below-4g=1G", "pc-i440fx-7.2", 2048},
      {"pc,max-ram-below-4g=3328M", "pc-i440fx-7.2", 4096},
      {"q35", "pc-q35-7.2", 2815},
      {"q35", "pc-q35-7.2", 2816},
      {"q35", "pc-q35-7.2", 6144},
      {"q35,max-ram-below-4g=1G", "pc-q35-7.2", 2048},
      {"q35,max-ram-below-4g=4G", "pc-q35-7.2", 2815},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(fmt::format("-machine {} -m {}", c.machine, c.mib));
    replay::MachineRecord record;
    record.machine_type = c.type;
    record.argv = {kQemu, "-machine", c.machine};
    RamLayout layout;
    layout.blocks = {{"pc.ram", c.mib << 20}};
    const auto map = replay::guest_physical_map(record, layout);
    ASSERT_TRUE(map) << map.error().message;
    auto real = ram_in_qemu(c.machine, c.mib);
    std::sort(real.begin(), real.end(),
              [](const auto& a, const auto& b) { return a.address < b.address; });
    ASSERT_EQ(map->ranges.size(), real.size());
    for (std::size_t i = 0; i < real.size(); ++i) {
      EXPECT_EQ(map->ranges[i].guest_address, real[i].address);
      EXPECT_EQ(map->ranges[i].guest_address + map->ranges[i].bytes - 1, real[i].last);
      EXPECT_EQ(map->ranges[i].block_offset, real[i].offset);
    }
  }
}

}  // namespace
}  // namespace vmshadow::test
