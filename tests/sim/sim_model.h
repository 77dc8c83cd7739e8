// The models that the simulator serves: the hash model, and a tiny real MoE on CPU kernels.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "common/model/model_store.h"
#include "common/net/control_messages.h"
#include "common/tensor/buffer_pool.h"
#include "common/testing/tiny_checkpoint.h"
#include "services/attention/layer_backend.h"
#include "services/expert/expert_backend.h"

namespace consilium::sim {

class SimModel {
 public:
  virtual ~SimModel() = default;
  // What a worker gives its backend.
  struct Sizes {
    uint32_t kv_blocks = 0, state_slots = 0, flights = 1, rows_max = 0;
  };
  virtual std::unique_ptr<LayerBackend> NewLayers(BufferPool* pool, const Sizes& sizes) = 0;
  virtual std::unique_ptr<ExpertBackend> NewExperts() = 0;
  virtual const ExpertEntry& entry(LayerId layer, ExpertId expert) const = 0;
  virtual ModelStore* store() = 0;
  virtual BackendShape shape() const = 0;  // kv_blocks and number of states aside
  virtual std::vector<control::MoeLayer> moe_layers() const = 0;
  std::string manifest = std::string(32, 'm');
  std::string class_name = "hash";
  uint64_t fingerprint = 7;
};
std::unique_ptr<SimModel> NewHashModel(bool recurrent = false);
// Writes a checkpoint into `folder` and opens it.
std::unique_ptr<SimModel> NewTinyModel(const TinyConfig& config, const std::string& folder);

}  // namespace consilium::sim
