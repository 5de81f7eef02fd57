// How hard the encoder tries, by how much the host's processors are wanted: lz4's acceleration, 1
// as usual, more for less work and less compression.
//
//   pressure (some avg10)   below 20 %   20 … 50 %   above
//   acceleration            1            4           16
//
// A step back is taken only once the pressure is 10 points below the step's threshold: a host that
// hovers at it does not flip.
#pragma once

#include <array>
#include <cstddef>

namespace vmshadow::ship {

class EncodeEffort {
 public:
  /// The acceleration for the host's present pressure in per cent.
  int acceleration(double pressure_percent) {
    while (step_ + 1 < kSteps.size() && pressure_percent >= kSteps[step_ + 1].from_percent) ++step_;
    while (step_ > 0 && pressure_percent < kSteps[step_].from_percent - kHysteresisPercent) --step_;
    return kSteps[step_].acceleration;
  }

 private:
  struct Step {
    double from_percent;
    int acceleration;
  };
  static constexpr std::array<Step, 3> kSteps = {{{0, 1}, {20, 4}, {50, 16}}};
  static constexpr double kHysteresisPercent = 10;
  std::size_t step_ = 0;
};

}  // namespace vmshadow::ship
