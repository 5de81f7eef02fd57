#include <gtest/gtest.h>

#include "app/byte_size.h"

namespace vmshadow::app {
namespace {

TEST(ByteSizeTest, ReadsWhatHasAUnit) {
  EXPECT_EQ(parse_size("1K"), 1024u);
  EXPECT_EQ(parse_size("200G"), std::uint64_t{200} << 30);
  EXPECT_EQ(parse_size("16777215T"), std::uint64_t{16777215} << 40);
  for (const char* text : {"", "G", "0G", "7", "7g", "-7G", " 7G", "7 G", "7.5G", "16777216T"}) {
    EXPECT_FALSE(parse_size(text)) << text;
  }
}

TEST(ByteSizeTest, WritesWhatPeopleRead) {
  EXPECT_EQ(size_text(0), "0 B");
  EXPECT_EQ(size_text(1023), "1023 B");
  EXPECT_EQ(size_text(1536), "1.5 KiB");
  EXPECT_EQ(size_text(std::uint64_t{2} << 30), "2.0 GiB");
  EXPECT_EQ(size_text(std::uint64_t{5000} << 40), "5000.0 TiB");
}

}  // namespace
}  // namespace vmshadow::app
