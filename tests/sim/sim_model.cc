#include "tests/sim/sim_model.h"

#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/model/model_spec.h"
#include "common/testing/hash_backend.h"
#include "kernels/api/kernels.h"
#include "services/attention/cpu_layer_backend.h"
#include "services/expert/cpu_expert_backend.h"

namespace consilium::sim {
namespace {

class HashSimModel final : public SimModel {
 public:
  explicit HashSimModel(bool recurrent) {
    model_.recurrent = recurrent;
    model_.vocab = 60;  // small, so that stop ids are met
    for (uint16_t l = 1; l < model_.layers; ++l) {
      for (uint16_t e = 0; e < model_.experts; ++e) {
        ExpertEntry entry;
        entry.layer = LayerId(l);
        entry.expert = ExpertId(e);
        entries_.push_back(entry);
      }
    }
  }
  std::unique_ptr<LayerBackend> NewLayers(BufferPool* pool, const Sizes& sizes) override {
    HashModel m = model_;
    m.kv_blocks = sizes.kv_blocks;
    m.state_slots = sizes.state_slots;
    return std::make_unique<HashLayerBackend>(m, pool);
  }
  std::unique_ptr<ExpertBackend> NewExperts() override { return std::make_unique<HashExpertBackend>(); }
  const ExpertEntry& entry(LayerId layer, ExpertId expert) const override {
    return entries_.at((layer.value - 1u) * model_.experts + expert.value);
  }
  ModelStore* store() override { return nullptr; }
  BackendShape shape() const override { return HashShape(model_); }
  std::vector<control::MoeLayer> moe_layers() const override {
    std::vector<control::MoeLayer> layers;
    for (uint16_t l = 1; l < model_.layers; ++l) layers.push_back({LayerId(l), model_.experts, 8});
    return layers;
  }

 private:
  HashModel model_;
  std::vector<ExpertEntry> entries_;
};

class TinySimModel final : public SimModel {
 public:
  TinySimModel(const TinyConfig& config, const std::string& folder) {
    const absl::Status written = WriteTinyCheckpoint(config, folder);
    CHECK_MSG(written.ok(), ToString(written));
    auto spec = ReadModelSpec(folder);
    CHECK_MSG(spec.ok(), ToString(spec.status()));
    spec_ = *spec;
    auto opened = OpenManifest(folder, "");
    CHECK_MSG(opened.ok(), ToString(opened.status()));
    manifest_ = *opened;
    manifest.assign(reinterpret_cast<const char*>(manifest_.digest.data()), manifest_.digest.size());
    class_name = "f32";
    store_ = OpenFolderStore(manifest_);
    ops_ = *kernels::FindOps("auto");
    shape_ = NewLayers(&pool_, {1, kStateSlotsMin, 1, 1})->shape();
  }
  std::unique_ptr<LayerBackend> NewLayers(BufferPool* pool, const Sizes& sizes) override {
    CpuLayerOptions options;
    options.kv_blocks = sizes.kv_blocks;
    options.state_slots = sizes.state_slots;
    options.flights = sizes.flights;
    options.rows_max = sizes.rows_max;
    auto backend = CpuLayerBackend::Create(spec_, manifest_, store_.get(), ops_, nullptr, pool, options);
    CHECK_MSG(backend.ok(), ToString(backend.status()));
    return std::move(*backend);
  }
  std::unique_ptr<ExpertBackend> NewExperts() override {
    return std::make_unique<CpuExpertBackend>(ExpertOptionsOf(spec_), ops_, nullptr);
  }
  const ExpertEntry& entry(LayerId layer, ExpertId expert) const override {
    const ExpertEntry* e = manifest_.FindExpert(layer, expert);
    CHECK(e != nullptr);
    return *e;
  }
  ModelStore* store() override { return store_.get(); }
  BackendShape shape() const override { return shape_; }
  std::vector<control::MoeLayer> moe_layers() const override {
    std::vector<control::MoeLayer> layers;
    for (size_t l = 0; l < spec_.layers.size(); ++l) {
      const LayerId layer(static_cast<uint16_t>(l));
      if (spec_.layers[l].ffn == FfnKind::kMoe) {
        layers.push_back({layer, spec_.gate.experts, entry(layer, ExpertId(0)).bytes()});
      }
    }
    return layers;
  }

 private:
  BufferPool pool_;
  ModelSpec spec_;
  Manifest manifest_;
  std::unique_ptr<ModelStore> store_;
  const kernels::Ops* ops_ = nullptr;
  BackendShape shape_;
};

}  // namespace

std::unique_ptr<SimModel> NewHashModel(bool recurrent) { return std::make_unique<HashSimModel>(recurrent); }
std::unique_ptr<SimModel> NewTinyModel(const TinyConfig& config, const std::string& folder) {
  return std::make_unique<TinySimModel>(config, folder);
}

}  // namespace consilium::sim
