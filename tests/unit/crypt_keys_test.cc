// Where keys come from, and where they must not go.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>

#include "crypt/key_command.h"
#include "crypt/key_directory.h"
#include "support/given_keys.h"
#include "support/temp_dir.h"

namespace vmshadow::crypt {
namespace {

using testing::HasSubstr;

std::string hex_line(unsigned value) {
  std::string line;
  for (std::size_t i = 0; i < kKeyBytes; ++i) line += fmt::format("{:02x}", value);
  return line;
}

Result<std::vector<SecretKey>> parsed(const std::string& text) {
  return parse_keys(std::as_bytes(std::span(text)));
}

bool is_key(const SecretKey& key, unsigned value) {
  return std::ranges::equal(key.bytes(), test::key_bytes(value));
}

TEST(KeyTextTest, RawOrHexOneOrSeveral) {
  const auto raw = parsed(std::string(kKeyBytes, '\x31'));
  ASSERT_TRUE(raw) << raw.error().message;
  EXPECT_TRUE(is_key(raw->front(), 0x31));
  for (const char* end : {"", "\n", "\r\n"}) {
    const auto hex = parsed(hex_line(0xab) + end);
    ASSERT_TRUE(hex) << hex.error().message;
    ASSERT_EQ(hex->size(), 1u);
    EXPECT_TRUE(is_key(hex->front(), 0xab));
  }
  const auto two = parsed(hex_line(2) + "\n" + hex_line(1) + "\n");
  ASSERT_TRUE(two) << two.error().message;
  ASSERT_EQ(two->size(), 2u);
  EXPECT_TRUE(is_key((*two)[0], 2));
  EXPECT_TRUE(is_key((*two)[1], 1));
}

TEST(KeyTextTest, AnythingElseIsRefusedWithoutBeingShown) {
  const std::string secret = "hunter2hunter2";
  for (const std::string& text : {std::string(), secret, std::string(31, 'x'), std::string(33, 'x'),
                                  hex_line(1) + hex_line(1), hex_line(1) + "\n\n" + hex_line(2),
                                  "g" + hex_line(1).substr(1)}) {
    const auto keys = parsed(text);
    ASSERT_FALSE(keys) << text;
    EXPECT_EQ(keys.error().code, Errc::invalid_argument);
    EXPECT_THAT(keys.error().message, Not(HasSubstr(secret)));
    EXPECT_THAT(keys.error().message, Not(HasSubstr("0101")));
  }
}

class KeyDirectoryTest : public testing::Test {
 protected:
  void write(const std::string& name, const std::string& text, mode_t mode = 0600) {
    std::ofstream(temp_.file(name)) << text;
    ASSERT_EQ(::chmod(temp_.file(name).c_str(), mode), 0);
  }
  test::TempDir temp_;
  KeyDirectory keys_{temp_.path()};
};

TEST_F(KeyDirectoryTest, AFileForEachVm) {
  write("web1.key", hex_line(7) + "\n");
  const auto keys = keys_.keys_of("web1");
  ASSERT_TRUE(keys) << keys.error().message;
  EXPECT_TRUE(is_key(keys->front(), 7));
}

TEST_F(KeyDirectoryTest, NoFileIsNoKey) {
  const auto keys = keys_.keys_of("web1");
  ASSERT_FALSE(keys);
  EXPECT_EQ(keys.error().code, Errc::not_found);
  EXPECT_EQ(keys.error().message,
            fmt::format("VM 'web1' has no key: there is no file '{}'", temp_.file("web1.key")));
}

TEST_F(KeyDirectoryTest, WhatOthersMayReadIsRefused) {
  for (const mode_t mode : {0640, 0604, 0620, 0601}) {
    write("web1.key", hex_line(7), mode);
    const auto keys = keys_.keys_of("web1");
    ASSERT_FALSE(keys) << mode;
    EXPECT_EQ(keys.error().code, Errc::permission);
    EXPECT_THAT(keys.error().message, HasSubstr("chmod 600"));
    EXPECT_THAT(keys.error().message, HasSubstr(fmt::format("(mode {:04o})", mode)));
  }
  write("web1.key", hex_line(7), 0400);
  EXPECT_TRUE(keys_.keys_of("web1"));
}

TEST_F(KeyDirectoryTest, WhatIsNoKeyIsNamed) {
  write("web1.key", "secret");
  EXPECT_THAT(keys_.keys_of("web1").error().message, HasSubstr("web1.key': a line of 6"));
  ASSERT_EQ(::mkdir(temp_.file("web2.key").c_str(), 0700), 0);
  EXPECT_THAT(keys_.keys_of("web2").error().message, HasSubstr("is not a file"));
  ASSERT_EQ(::mkfifo(temp_.file("web3.key").c_str(), 0600), 0);
  EXPECT_THAT(keys_.keys_of("web3").error().message, HasSubstr("is not a file"));
}

TEST(KeyCommandTest, PrintsTheKeyOfTheVmItIsAskedFor) {
  const std::string print = "[ \"$2\" = web1 ] && [ \"$VMSHADOW_VM\" = web1 ] && printf %s ";
  // As an operator writes it: the name comes last.
  const auto keys = KeyCommand("sh -c '" + print + hex_line(9) + "' sh first").keys_of("web1");
  ASSERT_TRUE(keys) << keys.error().message;
  EXPECT_TRUE(is_key(keys->front(), 9));
}

TEST(KeyCommandTest, FailuresSayWhich) {
  const auto error = [](const std::string& command) {
    const auto keys = KeyCommand(command, std::chrono::milliseconds(300)).keys_of("web1");
    EXPECT_FALSE(keys);
    return keys ? Error{} : keys.error();
  };
  EXPECT_EQ(error("exit 3;").message, "the key command for VM 'web1': it failed with status 3");
  EXPECT_EQ(error("exit 3;").code, Errc::not_found);
  EXPECT_EQ(error("echo nothing of the kind;:").code, Errc::invalid_argument);
  EXPECT_THAT(error("kill -9 $$;").message, HasSubstr("ended by signal 9"));
  EXPECT_EQ(error("sleep 60 &sleep 60;").code, Errc::timed_out);
  EXPECT_EQ(error("exec >&-; sleep 60;").message,
            "the key command for VM 'web1': it was ended by signal 9");
  EXPECT_THAT(error("yes;").message, HasSubstr("prints more than keys"));
}

/// The mapping that holds the key is one of those that the kernel leaves out of core files.
TEST(SecretKeyTest, LiesInMemoryThatIsNotDumped) {
  const auto key = SecretKey::copy_of(test::key_bytes(1));
  ASSERT_TRUE(key);
  const auto at = reinterpret_cast<std::uintptr_t>(key->bytes().data());
  std::ifstream maps("/proc/self/smaps");
  bool inside = false;
  for (std::string line; std::getline(maps, line);) {
    std::uintptr_t begin = 0;
    std::uintptr_t end = 0;
    char dash = 0;
    std::istringstream words(line);
    if (words >> std::hex >> begin >> dash >> end && dash == '-') inside = begin <= at && at < end;
    if (inside && line.starts_with("VmFlags:")) {
      EXPECT_THAT(line, HasSubstr(" dd")) << line;
      return;
    }
  }
  ADD_FAILURE() << "the mapping was not found";
}

}  // namespace
}  // namespace vmshadow::crypt
