// The body of every CPU kernel, written once over 16 lanes and compiled once per instruction set: the file
// that includes it defines CONSILIUM_TARGET (namespace) and CONSILIUM_TABLE after including the lanes of that
// target. Order of every operation: docs/NUMERICS.md; the truth: kernels/ref.
#include "kernels/api/numerics.h"
#include "kernels/cpu/body_attention.h"
#include "kernels/cpu/body_delta.h"
#include "kernels/cpu/body_gemm.h"
#include "kernels/cpu/body_rows.h"
#include "kernels/cpu/raw.h"

namespace consilium::kernels::CONSILIUM_TARGET {

static void Gemm(const RawGemm& g) {
  if (g.rows == 0) return;
  g.layout.code == RawCode::kBf16 ? GemmOf<RawCode::kBf16>(g) : GemmOf<RawCode::kF32>(g);
}

}  // namespace consilium::kernels::CONSILIUM_TARGET

namespace consilium::kernels {

const RawOps CONSILIUM_TABLE = {
    CONSILIUM_TARGET::Gemm,      CONSILIUM_TARGET::RmsNorm,       CONSILIUM_TARGET::Gated,
    CONSILIUM_TARGET::LayerNorm, CONSILIUM_TARGET::SwigluClamped, CONSILIUM_TARGET::Rope,
    CONSILIUM_TARGET::Attention, CONSILIUM_TARGET::Combine,       CONSILIUM_TARGET::Add,
    CONSILIUM_TARGET::Scores,    CONSILIUM_TARGET::Weights,       CONSILIUM_TARGET::Delta,
};

}  // namespace consilium::kernels
