// Files mapped into memory, and models that use their weights in place.
#include "base/file_map.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <set>
#include <system_error>

#include "testing.h"

namespace lfm::testing {
namespace {

struct Remove {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Remove>;

File file_of(const std::string& content) {
  File file(std::tmpfile());
  EXPECT_EQ(std::fwrite(content.data(), 1, content.size(), file.get()), content.size());
  std::fflush(file.get());
  return file;
}

TEST(FileMap, HoldsTheFileOnAHugePageBorder) {
  for (const size_t size : {size_t{1}, size_t{4096}, size_t{4097}, (size_t{2} << 20) + 5}) {
    std::string content(size, 'x');
    content.back() = 'y';
    File file = file_of(content);
    const auto map = std::make_shared<const FileMap>(fileno(file.get()));
    file.reset();  // the map stays
    const std::span<const std::byte> bytes = map->bytes();
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()), content);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes.data()) % (size_t{2} << 20), 0u);
  }
}

TEST(FileMap, PopulateMayOutliveTheMap) {
  const File file = file_of(std::string(size_t{40} << 20, 'x'));
  for (int i = 0; i < 20; ++i) {
    const auto map = std::make_shared<const FileMap>(fileno(file.get()));
    map->populate(static_cast<size_t>(i) * 1000003);
    EXPECT_EQ(map->bytes()[static_cast<size_t>(i) << 20], std::byte{'x'});
  }
}

TEST(FileMap, EmptyFilesAndNoFiles) {
  const File empty = file_of("");
  EXPECT_TRUE(throws_naming("empty", [&] { FileMap map(fileno(empty.get())); }));
  EXPECT_THROW(FileMap map(-1), std::system_error);
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  EXPECT_THROW(FileMap map(ends[0]), std::exception);
  ::close(ends[0]);
  ::close(ends[1]);
}

// What export_weights gives, as a source: 64-byte aligned copies.
struct Exported {
  explicit Exported(const Model& model) {
    export_weights(model.config(), model.weights(),
                   {[this](const std::string& name, const PackedWeights& w) {
                      auto copies = std::make_shared<std::vector<Buffer<std::byte>>>();
                      PackedWeights& copy =
                          matrices[name] = {w.implementation, w.in_features, w.out_features, {}, copies};
                      for (const std::span<const std::byte> part : w.parts) {
                        Buffer<std::byte>& to = copies->emplace_back(part.size());
                        std::copy(part.begin(), part.end(), to.data());
                        copy.parts.push_back({to.data(), to.size()});
                      }
                    },
                    [this](const std::string& name, const std::vector<int64_t>& shape, std::span<const float> values) {
                      vectors[name] = {shape, {values.begin(), values.end()}};
                    }});
  }
  TensorSource source() const {
    return {[this](const std::string& name, const std::vector<int64_t>&) {
              const auto found = vectors.find(name);
              check(found != vectors.end(), "tensor '", name, "' is missing");
              return view_of(name, found->second.values, found->second.shape);
            },
            {},
            [this](const std::string& name) { return std::optional(matrices.at(name)); }};
  }
  std::map<std::string, PackedWeights> matrices;
  std::map<std::string, Tensor> vectors;
};

std::vector<float> logits_of(const Model& model) {
  const std::vector<int32_t> tokens = Rng(1).tokens(40, model.config().vocab_size);
  SequenceState state = model.new_state();
  std::vector<float> logits(static_cast<size_t>(40 * model.config().vocab_size));
  Workspace ws;
  const SequenceInput input = {&state, tokens, LogitsFor::all};
  model.forward({&input, 1}, logits.data(), ws);
  return logits;
}

TEST(PackedModel, HasTheBitsOfTheModelThatWasExported) {
  for (const ModelConfig& config : {lfm2_config(), llama_config(), biased_config()}) {
    for (const ComputeType type : {ComputeType::int8, ComputeType::int4}) {
      const auto model = tiny_model(config, 3).load(type);
      std::unique_ptr<Model> again;
      {
        const Exported exported(*model);
        again = std::make_unique<Model>(config, exported.source(), type, 2);
      }  // the model keeps what it uses in place
      EXPECT_TRUE(same_bits(logits_of(*again), logits_of(*model))) << compute_type_name(type);
      EXPECT_EQ(again->weights().nbytes(), model->weights().nbytes());
    }
    for (const ComputeType type : {ComputeType::f32, ComputeType::bf16}) {
      const auto model = tiny_model(config, 3).load(type);
      EXPECT_TRUE(throws_naming("use dtype int8 or int4", [&] { Exported exported(*model); }));
    }
  }
}

TEST(PackedModel, RefusesWhatDoesNotFit) {
  const ModelConfig config = lfm2_config();
  const auto model = tiny_model(config, 3).load(ComputeType::int4);
  const std::string name = "model.layers.1.feed_forward.w13.weight";
  const auto refused = [&](const std::string& message, const auto& damage) {
    Exported exported(*model);
    damage(exported.matrices[name]);
    EXPECT_TRUE(throws_naming(concat("'", name, "'"), [&] { Model(config, exported.source(), ComputeType::int4, 1); }));
    EXPECT_TRUE(throws_naming(message, [&] { Model(config, exported.source(), ComputeType::int4, 1); }));
  };
  refused("layout 'panels:q2'", [](PackedWeights& w) { w.implementation = "panels:q2"; });
  refused("3 parts instead of 2", [](PackedWeights& w) { w.parts.push_back(w.parts[0]); });
  refused("0 parts instead of 2", [](PackedWeights& w) { w.parts.clear(); });
  refused("the configuration needs [112, 40]", [](PackedWeights& w) { w.out_features += 1; });
  refused("the configuration needs [112, 40]", [](PackedWeights& w) { w.in_features -= 8; });
  refused("bytes instead of", [](PackedWeights& w) { w.parts[1] = w.parts[1].first(w.parts[1].size() - 1); });
  refused("not aligned", [](PackedWeights& w) {
    static Buffer<std::byte> memory(w.parts[0].size() + 16);
    w.parts[0] = {memory.data() + 16, w.parts[0].size()};
  });
}

// Each layout, the one with minima too.
TEST(PackedModel, EveryLayoutOnEveryIsa) {
  constexpr int64_t kRows = 37, kCols = 96;
  Rng rng(9);
  std::vector<std::byte> blocks(kRows * kCols / 32 * block_bytes(DType::q4_1));
  for (size_t i = 0; i < blocks.size(); ++i) {
    const size_t at = i % block_bytes(DType::q4_1);
    blocks[i] = at < 4 ? std::byte{at % 2 == 0 ? uint8_t{7} : uint8_t{0x30}} : static_cast<std::byte>(rng.below(256));
  }
  const std::vector<float> plain = rng.normals(kRows * kCols), x = rng.normals(3 * kCols);
  const std::vector<TensorView> mins = {{"w", blocks.data(), DType::q4_1, {kRows, kCols}}};
  const std::vector<TensorView> dense = {view_of("w", plain, {kRows, kCols})};
  std::set<std::string> layouts;
  for (const Isa isa : isas_up_to(active_isa())) {
    for (const auto& linear :
         {make_linear(dense, ComputeType::int8, Isa::reference), make_linear(dense, ComputeType::int4, Isa::reference),
          make_linear(mins, ComputeType::int4, Isa::reference)}) {
      const PackedWeights packed = linear->packed().value();
      layouts.insert(packed.implementation);
      const auto again = make_linear(packed, isa);
      std::vector<float> row(kCols), want(kCols), y(3 * kRows), exact(3 * kRows);
      for (int64_t n = 0; n < kRows; ++n) {
        again->weight_row(n, row.data());
        linear->weight_row(n, want.data());
        ASSERT_TRUE(same_bits(row, want)) << packed.implementation << ", row " << n;
      }
      LinearScratch scratch;
      again->forward(x.data(), 3, y.data(), false, scratch);
      linear->forward(x.data(), 3, exact.data(), false, scratch);
      EXPECT_TRUE(close(y.data(), exact.data(), 3 * kRows, 1e-4, 1e-4)) << packed.implementation;
    }
  }
  EXPECT_EQ(layouts, (std::set<std::string>{"panels:q8", "panels:q4", "panels:q4_mins"}));
}

}  // namespace
}  // namespace lfm::testing
