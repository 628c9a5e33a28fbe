// What the tests of linear layers share.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/linear.h"
#include "testing.h"

namespace lfm::testing {

inline constexpr ComputeType kTypes[] = {ComputeType::f32, ComputeType::bf16, ComputeType::int8, ComputeType::int4};

// A type, and the bits that float weights keep at least.
struct Kind {
  ComputeType type;
  int least_bits = 4;
};
inline constexpr Kind kKinds[] = {
    {ComputeType::f32}, {ComputeType::bf16}, {ComputeType::int8}, {ComputeType::int4}, {ComputeType::int4, 6}};

inline bool is_integer(ComputeType type) { return type == ComputeType::int8 || type == ComputeType::int4; }

// oneDNN is limited to active_isa() once per process, so higher levels are not asked for.
class LinearTest : public ::testing::TestWithParam<Isa> {
 protected:
  std::unique_ptr<Linear> make(const std::vector<TensorView>& parts, ComputeType type) const {
    auto linear = make_linear(parts, type, GetParam());
    const std::string name(linear->implementation());
    // oneDNN's other matmuls are slow references or give a row other bits in another batch.
    const bool tiles = GetParam() >= Isa::amx && type == ComputeType::bf16;
    if (tiles) EXPECT_EQ(name, "tiles:bf16");
    EXPECT_TRUE(tiles || name.starts_with("onednn:brg:") || name.starts_with("panels:")) << name;
    if (GetParam() < Isa::avx512 || is_integer(type)) EXPECT_TRUE(name.starts_with("panels:")) << name;
    return linear;
  }
  std::unique_ptr<Linear> make(std::vector<TensorView> parts, const Kind& kind) const {
    for (TensorView& part : parts) part.least_bits = kind.least_bits;
    auto linear = make(parts, kind.type);
    EXPECT_EQ(linear->implementation() == "panels:q6", kind.least_bits == 6);
    return linear;
  }
  Rng rng{5};
};

inline std::vector<float> apply(const Linear& linear, const std::vector<float>& x, int64_t rows) {
  LinearScratch scratch;
  Guarded<float> y(std::vector<float>(static_cast<size_t>(rows * linear.out_features()), NAN));
  linear.forward(x.data(), rows, y.data(), false, scratch);
  EXPECT_TRUE(y.intact());
  return y.values();
}

}  // namespace lfm::testing
