#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "replay/machine_record.h"
#include "replay/qemu_command.h"

namespace vmshadow::replay {
namespace {

using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
using Words = std::vector<std::string>;

constexpr const char* kQmpPath = "/run/r/qmp.sock";

MachineRecord record_with(Words arguments) {
  MachineRecord record;
  record.qemu_binary = "/usr/bin/qemu-system-x86_64";
  record.accelerator = "tcg";
  record.cwd = "/srv/vm";
  record.argv = std::move(arguments);
  record.argv.insert(record.argv.begin(), "qemu-system-x86_64");
  return record;
}

/// The arguments kept of `arguments`, between the executable and what is appended.
Words kept(Words arguments, const CommandChanges& changes = {}) {
  const auto command = command_for_restore(record_with(std::move(arguments)), changes, kQmpPath);
  EXPECT_TRUE(command) << command.error().message;
  if (!command) return {};
  const Words& argv = command->argv;
  EXPECT_GE(argv.size(), 5u);
  EXPECT_THAT(
      Words(argv.end() - 4, argv.end()),
      ElementsAreArray({"-qmp", "unix:/run/r/qmp.sock,server=on,wait=off", "-incoming", "defer"}));
  return Words(argv.begin() + 1, argv.end() - 4);
}

Error refusal(Words arguments, const CommandChanges& changes = {}) {
  const auto command = command_for_restore(record_with(std::move(arguments)), changes, kQmpPath);
  EXPECT_FALSE(command);
  return command ? Error{} : command.error();
}

struct RewriteCase {
  const char* what;
  Words given;
  Words expected;
};

TEST(QemuCommandTest, DropsWhatBelongsToWhoeverStartedTheOriginal) {
  const RewriteCase cases[] = {
      {"start-up",
       {"-m", "16", "-daemonize", "-pidfile", "/run/x.pid", "-S", "-preconfig", "-snapshot"},
       {"-m", "16", "-snapshot"}},
      {"double dashes",
       {"--daemonize", "--S", "--nodefaults", "--incoming", "defer"},
       {"--nodefaults"}},
      {"an old incoming", {"-incoming", "tcp:0:4444", "-m", "1G"}, {"-m", "1G"}},
      {"a snapshot to load", {"-loadvm", "clean", "-m", "1G"}, {"-m", "1G"}},
      {"short monitors",
       {"-qmp", "unix:/a,server", "-monitor", "stdio", "-qmp-pretty", "tcp::1"},
       {}},
      {"a monitor and its chardev",
       {"-chardev", "socket,id=mon0,path=/a,server=on", "-mon", "chardev=mon0,mode=control"},
       {}},
      {"the chardev behind the monitor, id last",
       {"-mon", "mode=control,chardev=mon0", "-chardev", "socket,path=/a,server=on,id=mon0"},
       {}},
      {"a monitor by its first field", {"-chardev", "stdio,id=m", "-mon", "m,mode=readline"}, {}},
      {"a chardev the serial port shares",
       {"-chardev", "stdio,mux=on,id=c", "-mon", "chardev=c", "-serial", "chardev:c"},
       {"-chardev", "stdio,mux=on,id=c", "-serial", "chardev:c"}},
      {"a chardev a device in JSON shares",
       {"-chardev", "pty,id=c0", "-mon", "chardev=c0", "-device",
        R"({"driver":"isa-serial","chardev":"c0"})"},
       {"-chardev", "pty,id=c0", "-device", R"({"driver":"isa-serial","chardev":"c0"})"}},
      {"a chardev whose name only begins like the monitor's",
       {"-chardev", "pty,id=mon", "-chardev", "pty,id=mon1", "-mon", "chardev=mon", "-serial",
        "chardev:mon1"},
       {"-chardev", "pty,id=mon1", "-serial", "chardev:mon1"}},
      {"two monitors on one chardev",
       {"-chardev", "pty,id=c", "-mon", "chardev=c", "-mon", "chardev=c,mode=control"},
       {}},
      {"values that look like options",
       {"-append", "-S", "-name", "-daemonize", "-fw_cfg", "name=opt/x,string=-qmp"},
       {"-append", "-S", "-name", "-daemonize", "-fw_cfg", "name=opt/x,string=-qmp"}},
      {"flags do not swallow what follows",
       {"-nodefaults", "-S", "-enable-kvm", "-daemonize", "-no-reboot", "-qmp", "x", "-usb"},
       {"-nodefaults", "-enable-kvm", "-no-reboot", "-usb"}},
      {"a disk image by itself", {"disk.img", "-S", "-m", "16"}, {"disk.img", "-m", "16"}},
      {"a last option without its value", {"-m", "16", "-monitor"}, {"-m", "16"}},
      {"an empty argument", {"-append", "", "-S"}, {"-append", ""}},
      {"nothing", {}, {}},
  };
  for (const RewriteCase& c : cases) EXPECT_EQ(kept(c.given), c.expected) << c.what;
}

TEST(QemuCommandTest, WhatLibvirtWritesLosesItsMonitorAlone) {
  EXPECT_EQ(kept({"-name", "guest=web1,debug-threads=on", "-S", "-machine",
                  "pc-i440fx-7.2,usb=off,memory-backend=pc.ram", "-accel", "kvm", "-nodefaults",
                  "-chardev", "socket,id=charmonitor,path=/var/lib/m.sock,server=on,wait=off",
                  "-mon", "chardev=charmonitor,id=monitor,mode=control", "-chardev",
                  "pty,id=charserial0", "-device",
                  R"({"driver":"isa-serial","chardev":"charserial0","id":"serial0","index":0})"}),
            (Words{"-name", "guest=web1,debug-threads=on", "-machine",
                   "pc-i440fx-7.2,usb=off,memory-backend=pc.ram", "-accel", "kvm", "-nodefaults",
                   "-chardev", "pty,id=charserial0", "-device",
                   R"({"driver":"isa-serial","chardev":"charserial0","id":"serial0","index":0})"}));
}

TEST(QemuCommandTest, OperatorsChangesAreApplied) {
  CommandChanges changes;
  changes.qemu_binary = "/opt/qemu";
  changes.cwd = "/tmp";
  changes.replacements = {{"/a/", "/b/"}, {"disk0", "copy0"}};
  changes.extra_args = {"-display", "none"};
  changes.environment = {"A=1"};
  const auto command = command_for_restore(
      record_with({"-serial", "file:/a/s", "-drive", "file=/a/disk0,if=ide"}), changes, kQmpPath);
  ASSERT_TRUE(command) << command.error().message;
  EXPECT_EQ(command->argv.front(), "/opt/qemu");
  EXPECT_EQ(command->cwd, "/tmp");
  EXPECT_EQ(shell_text(*command),
            "cd /tmp && env A=1 /opt/qemu -serial file:/b/s -drive file=/b/copy0,if=ide "
            "-display none -qmp unix:/run/r/qmp.sock,server=on,wait=off -incoming defer");
}

// Whole names alone, each once: one disk may take the name that another had.
TEST(QemuCommandTest, ImagesAreReplacedByTheirWholeNames) {
  CommandChanges changes;
  changes.images = {{"/srv/a.img", "/new/b.img"}, {"/new/b.img", "/srv/a.img"}, {"c,d", "/e,f"}};
  EXPECT_THAT(kept({"-drive", "file=/srv/a.img,if=none", "-blockdev",
                    R"({"driver":"file","filename":"/new/b.img"})", "-drive", "if=none,file=c,,d",
                    "-drive", "file=/srv/a.img.old", "-drive", "file=/old/srv/a.img", "/srv/a.img"},
                   changes),
              ElementsAreArray({"-drive", "file=/new/b.img,if=none", "-blockdev",
                                R"({"driver":"file","filename":"/srv/a.img"})", "-drive",
                                "if=none,file=/e,,f", "-drive", "file=/srv/a.img.old", "-drive",
                                "file=/old/srv/a.img", "/new/b.img"}));
  const Error error = refusal({"-drive", "file=/srv/a.img"}, changes);
  EXPECT_THAT(error.message, HasSubstr("'/new/b.img'"));
}

TEST(QemuCommandTest, TheShellTextQuotesWhatAShellWouldRead) {
  const auto command =
      command_for_restore(record_with({"-append", "it's $HOME"}), {}, "/run/a b,c");
  ASSERT_TRUE(command) << command.error().message;
  EXPECT_THAT(shell_text(*command), HasSubstr(R"(-append 'it'\''s $HOME')"));
  EXPECT_THAT(shell_text(*command), HasSubstr("'unix:/run/a b,,c,server=on,wait=off'"));
}

TEST(QemuCommandTest, AReplacementThatMatchesNothingIsRefused) {
  CommandChanges changes;
  changes.replacements = {{"/nowhere", "/b"}};
  const Error error = refusal({"-m", "16"}, changes);
  EXPECT_EQ(error.code, Errc::invalid_argument);
  EXPECT_THAT(error.message, HasSubstr("'/nowhere' occurs in no argument"));
}

TEST(QemuCommandTest, AnInheritedDescriptorIsRefusedUnlessReplaced) {
  const Words tap{"-netdev", "tap,id=n0,fd=27,vhost=on"};
  const Error error = refusal(tap);
  EXPECT_EQ(error.code, Errc::invalid_argument);
  EXPECT_THAT(error.message, HasSubstr("tap,id=n0,fd=27"));
  EXPECT_THAT(error.message, HasSubstr("--set"));
  EXPECT_THAT(refusal({"-netdev", "tap,id=n0,fds=27:28"}).message, HasSubstr("fds=27:28"));
  EXPECT_THAT(refusal({"-add-fd", "fd=3,set=1"}).message, HasSubstr("fd=3"));
  CommandChanges changes;
  changes.replacements = {{"fd=27", "ifname=tap9"}};
  EXPECT_EQ(kept(tap, changes), (Words{"-netdev", "tap,id=n0,ifname=tap9,vhost=on"}));
  // A monitor's inherited descriptor goes away with the monitor.
  EXPECT_EQ(kept({"-chardev", "socket,id=m,fd=25,server=on", "-mon", "chardev=m"}), Words{});
}

TEST(QemuCommandTest, TheBinaryIsFoundInOneOfThreePlaces) {
  auto record = record_with({});
  record.qemu_binary = "/usr/bin/qemu (deleted)";
  EXPECT_EQ(command_for_restore(record, {}, kQmpPath)->argv.front(), "/usr/bin/qemu");
  record.qemu_binary.clear();
  EXPECT_EQ(command_for_restore(record, {}, kQmpPath)->argv.front(), "qemu-system-x86_64");
}

TEST(QemuCommandTest, KvmIsNeededUnlessTcgIsAskedFor) {
  auto record = record_with({"-accel", "kvm"});
  EXPECT_FALSE(command_for_restore(record, {}, kQmpPath)->needs_kvm);
  record.accelerator = "kvm";
  EXPECT_TRUE(command_for_restore(record, {}, kQmpPath)->needs_kvm);
  CommandChanges changes;
  changes.replacements = {{"kvm", "tcg"}};
  EXPECT_FALSE(command_for_restore(record, changes, kQmpPath)->needs_kvm);
  record.argv = {"qemu", "-machine", "pc,accel=tcg"};
  EXPECT_FALSE(command_for_restore(record, {}, kQmpPath)->needs_kvm);
}

TEST(QemuCommandTest, WithoutARecordedCommandLineTheOtherWayIsNamed) {
  const auto command = command_for_restore(MachineRecord{}, {}, kQmpPath);
  ASSERT_FALSE(command);
  EXPECT_EQ(command.error().code, Errc::unsupported);
  EXPECT_THAT(command.error().message, HasSubstr("--qmp"));
}

TEST(ReplacementTest, SplitsAtTheFirstUnescapedEqualsSign) {
  const auto plain = parse_replacement("/a=/b=c");
  ASSERT_TRUE(plain) << plain.error().message;
  EXPECT_EQ(plain->from, "/a");
  EXPECT_EQ(plain->to, "/b=c");
  const auto escaped = parse_replacement(R"(fd\=27=ifname=tap0)");
  ASSERT_TRUE(escaped) << escaped.error().message;
  EXPECT_EQ(escaped->from, "fd=27");
  EXPECT_EQ(escaped->to, "ifname=tap0");
  EXPECT_EQ(parse_replacement("a=")->to, "");
  for (const char* wrong : {"", "abc", "=x", R"(a\=b)"}) {
    const auto parsed = parse_replacement(wrong);
    ASSERT_FALSE(parsed) << wrong;
    EXPECT_EQ(parsed.error().code, Errc::invalid_argument);
    EXPECT_THAT(parsed.error().message, HasSubstr("OLD=NEW"));
  }
}

TEST(MachineRecordTest, ReadsAllKeysAndIgnoresOthers) {
  const auto record = parse_machine_record(R"({"qemu_binary":"/q","qemu_version":"7.2.22",
      "machine_type":"pc-i440fx-7.2","accelerator":"kvm","ram_bytes":67108864,
      "argv":["q","-m","64"],"cwd":"/","uuid":"u","name":"n","later":{"x":[1]}})");
  ASSERT_TRUE(record) << record.error().message;
  EXPECT_EQ(record->qemu_binary, "/q");
  EXPECT_EQ(record->qemu_version, "7.2.22");
  EXPECT_EQ(record->machine_type, "pc-i440fx-7.2");
  EXPECT_EQ(record->accelerator, "kvm");
  EXPECT_EQ(record->ram_bytes, 67108864u);
  EXPECT_EQ(record->argv, (Words{"q", "-m", "64"}));
  EXPECT_EQ(record->cwd, "/");
  EXPECT_EQ(record->uuid, "u");
  EXPECT_EQ(record->name, "n");
  EXPECT_TRUE(parse_machine_record("{}"));
  EXPECT_TRUE(parse_machine_record(R"({"argv":null,"ram_bytes":null,"name":null})"));
}

TEST(MachineRecordTest, NamesTheKeyThatIsWrong) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "not a JSON object"},
      {"[1]", "not a JSON object"},
      {"{\"a\":", "not a JSON object"},
      {R"({"name":1})", "'name'"},
      {R"({"cwd":"a\u0000b"})", "'cwd'"},
      {R"({"argv":"x"})", "'argv'"},
      {R"({"argv":["x",2]})", "'argv'"},
      {R"({"argv":["a\u0000b"]})", "'argv'"},
      {R"({"ram_bytes":-1})", "'ram_bytes'"},
      {R"({"ram_bytes":1.5})", "'ram_bytes'"},
      {R"({"ram_bytes":"64M"})", "'ram_bytes'"},
  };
  for (const auto& [text, word] : cases) {
    const auto record = parse_machine_record(text);
    ASSERT_FALSE(record) << text;
    EXPECT_EQ(record.error().code, Errc::corrupt) << text;
    EXPECT_THAT(record.error().message, HasSubstr(word)) << text;
  }
}

}  // namespace
}  // namespace vmshadow::replay
