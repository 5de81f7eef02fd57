#include <gtest/gtest.h>

#include <fstream>

#include "io/cpu_pressure.h"
#include "support/temp_dir.h"

namespace vmshadow::io {
namespace {

TEST(CpuPressure, ReadsTheFirstAverage) {
  EXPECT_EQ(parse_some_avg10("some avg10=67.81 avg60=54.98 avg300=28.88 total=123273771\n"
                             "full avg10=1.00 avg60=0.00 avg300=0.00 total=0\n"),
            67.81);
  EXPECT_EQ(parse_some_avg10("full avg10=1.00\nsome avg10=0.00 avg60=1\n"), 0.0);
}

TEST(CpuPressure, TakesNothingElseForANumber) {
  for (const char* text :
       {"", "some avg60=1.00\n", "full avg10=1.00 avg60=0\n", "some avg10=\n", "some avg10=nan\n",
        "some avg10=-1\n", "some avg10=101\n", "awesome avg10=1.00\n"}) {
    EXPECT_EQ(parse_some_avg10(text), std::nullopt) << text;
  }
}

TEST(CpuPressure, AKernelWithoutItSaysNothing) {
  const test::TempDir directory;
  EXPECT_EQ(cpu_pressure(directory.file("cpu")), std::nullopt);
  std::ofstream(directory.file("cpu")) << "some avg10=12.50 avg60=0.00 avg300=0.00 total=1\n";
  EXPECT_EQ(cpu_pressure(directory.file("cpu")), 12.5);
}

}  // namespace
}  // namespace vmshadow::io
