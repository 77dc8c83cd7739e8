// How the CPU backend behaves at its seam; its numbers are tested in tests/golden.
#include "services/expert/cpu_expert_backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>

#include "common/base/status.h"
#include "common/model/model_spec.h"
#include "common/testing/tiny_checkpoint.h"

namespace consilium {
namespace {

using ::testing::HasSubstr;

class CpuExpertBackendTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(WriteTinyCheckpoint(TinyConfig{}, folder_.path() + "/m").ok());
    manifest_ = *OpenManifest(folder_.path() + "/m", "");
    store_ = OpenFolderStore(manifest_);
    options_.hidden = 32;
    options_.inter = 16;
  }
  std::unique_ptr<CpuExpertBackend> Make() {
    return std::make_unique<CpuExpertBackend>(options_, *kernels::FindOps("auto"), nullptr);
  }
  const ExpertEntry& Entry(uint16_t e) { return *manifest_.FindExpert(LayerId(1), ExpertId(e)); }
  // Output of one row that holds `value` in every lane.
  std::vector<float> One(CpuExpertBackend* b, ExpertHandle handle, float value) {
    std::vector<float> in(32, value), out(32);
    const ExpertRow row{reinterpret_cast<std::byte*>(in.data()), reinterpret_cast<std::byte*>(out.data())};
    const ExpertGroup group{handle, 0, 1};
    absl::Status status;
    b->Run({{&group, 1}, {&row, 1}}, [&](FfnDone done) { status = done.status; });
    EXPECT_TRUE(status.ok()) << ToString(status);
    return out;
  }

  TemporaryFolder folder_;
  Manifest manifest_;
  std::unique_ptr<ModelStore> store_;
  CpuExpertOptions options_;
};

TEST_F(CpuExpertBackendTest, RowsOfManyExpertsGoWhereTheyBelong) {
  const auto b = Make();
  std::vector<ExpertHandle> handles;
  for (uint16_t e = 0; e < 3; ++e) handles.push_back(*b->Load(Entry(e), store_.get()));
  // Rows 0..4 of experts 2, 2, 0, 1, 1 from and to scattered places.
  const int of[5] = {2, 2, 0, 1, 1}, place[5] = {3, 0, 4, 1, 2};
  std::vector<float> in(5 * 32), out(5 * 32);
  std::vector<ExpertRow> rows;
  for (int i = 0; i < 5; ++i) {
    std::fill_n(in.begin() + place[i] * 32, 32, 0.1f * static_cast<float>(i + 1));
    rows.push_back({reinterpret_cast<std::byte*>(&in[static_cast<size_t>(place[i]) * 32]),
                    reinterpret_cast<std::byte*>(&out[static_cast<size_t>(place[i]) * 32])});
  }
  const ExpertGroup groups[] = {{handles[2], 0, 2}, {handles[0], 2, 1}, {handles[1], 3, 2}};
  b->Run({groups, rows}, [](FfnDone done) { ASSERT_TRUE(done.status.ok()); });
  for (int i = 0; i < 5; ++i) {
    const std::vector<float> got(out.begin() + place[i] * 32, out.begin() + place[i] * 32 + 32);
    EXPECT_EQ(got, One(b.get(), handles[static_cast<size_t>(of[i])], 0.1f * static_cast<float>(i + 1))) << i;
  }
}

TEST_F(CpuExpertBackendTest, ADamagedExpertIsNotLoaded) {
  const auto b = Make();
  std::fstream file(manifest_.files[0], std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(Entry(1).parts[2].range.offset + 9));
  file.put('!');
  file.close();
  EXPECT_THAT(ToString(b->Load(Entry(1), store_.get()).status()),
              HasSubstr("DATA_LOSS: expert 1 of layer 1: checksum"));
  EXPECT_TRUE(b->Load(Entry(2), store_.get()).ok());
}

TEST_F(CpuExpertBackendTest, AnExpertOfAnotherSizeIsRefused) {
  options_.inter = 24;
  EXPECT_THAT(ToString(Make()->Load(Entry(0), store_.get()).status()),
              HasSubstr("does not fit hidden 32, intermediate 24"));
}

TEST_F(CpuExpertBackendTest, CountsBytesUntilDropped) {
  const auto b = Make();
  const ExpertHandle h = *b->Load(Entry(0), store_.get());
  EXPECT_NE(h, 0u);
  EXPECT_EQ(b->loaded_bytes(), 3u * 32 * 16 * 2);
  b->Drop(h);
  EXPECT_EQ(b->loaded_bytes(), 0u);
  const ExpertGroup group{h, 0, 0};
  absl::Status status;
  b->Run({{&group, 1}, {}}, [&](FfnDone done) { status = done.status; });
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(CpuExpertBackendTest, AnExpertDroppedDuringAJobStillComputesIt) {
  std::function<void()> work;
  options_.run_compute = [&](std::function<void()> f) { work = std::move(f); };
  const auto b = Make();
  const ExpertHandle h = *b->Load(Entry(0), store_.get());
  std::vector<float> in(32, 0.5f), out(32);
  const ExpertRow row{reinterpret_cast<std::byte*>(in.data()), reinterpret_cast<std::byte*>(out.data())};
  const ExpertGroup group{h, 0, 1};
  bool done = false;
  b->Run({{&group, 1}, {&row, 1}}, [&](FfnDone result) { done = result.status.ok(); });
  b->Drop(h);
  work();
  EXPECT_TRUE(done);
  EXPECT_NE(out, std::vector<float>(32));
}

// The row is quantised once, at the router: the same bits as rows that the shard quantises.
TEST_F(CpuExpertBackendTest, RowsQuantisedByTheRouterGiveTheSameBits) {
  options_.numerics = {kernels::NumericsClass::kI8g32, WeightsAs::kInt8, false};
  const auto floats = Make();
  options_.numerics.integer_rows = true;
  const auto integers = Make();
  EXPECT_EQ(floats->row_bytes_in(), 32u * 4);
  EXPECT_EQ(integers->row_bytes_in(), 32u + 4);
  EXPECT_EQ(integers->row_bytes_out(), 32u * 4);
  const auto loaded = integers->Load(Entry(1), store_.get());
  ASSERT_TRUE(loaded.ok()) << ToString(loaded.status());
  EXPECT_GT(integers->quant_error().relative(), 0.0);
  EXPECT_LT(integers->quant_error().relative(), 0.02);

  std::vector<float> in(32), expected(32), got(32);
  for (size_t i = 0; i < in.size(); ++i) in[i] = std::sin(static_cast<float>(i));
  std::vector<std::byte> quantised(kernels::QuantRowBytes(32)), wire(integers->row_bytes_in());
  (*kernels::FindOps("ref"))->quantize_rows({in.data(), 32, 1}, 32, quantised.data());
  kernels::WireFromQuantRow(quantised.data(), 32, wire.data());
  const auto run = [](CpuExpertBackend* b, ExpertHandle handle, const void* from, std::vector<float>* to) {
    const ExpertRow row{static_cast<const std::byte*>(from), reinterpret_cast<std::byte*>(to->data())};
    const ExpertGroup group{handle, 0, 1};
    b->Run({{&group, 1}, {&row, 1}}, [](FfnDone done) { ASSERT_TRUE(done.status.ok()); });
  };
  run(floats.get(), *floats->Load(Entry(1), store_.get()), in.data(), &expected);
  run(integers.get(), *loaded, wire.data(), &got);
  EXPECT_NE(expected, std::vector<float>(32));
  EXPECT_EQ(got, expected);
}

TEST_F(CpuExpertBackendTest, RowsAtOddAddressesAreRefused) {
  const auto b = Make();
  const ExpertHandle h = *b->Load(Entry(0), store_.get());
  std::vector<float> in(40), out(40);
  const ExpertRow row{reinterpret_cast<std::byte*>(in.data()) + 2, reinterpret_cast<std::byte*>(out.data())};
  const ExpertGroup group{h, 0, 1};
  absl::Status status;
  b->Run({{&group, 1}, {&row, 1}}, [&](FfnDone done) { status = done.status; });
  EXPECT_THAT(ToString(status), HasSubstr("multiples of 4 bytes"));
}

}  // namespace
}  // namespace consilium
