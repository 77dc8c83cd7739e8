#include "common/model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

namespace consilium {
namespace {

// The scaling object in either spelling, and the base frequency.
struct Source {
  std::optional<ConfigReader> scaling;
  double theta = 10000;
  std::string type = "default";
};

Source FindSource(ConfigReader& config) {
  Source s;
  auto v5 = config.Object("rope_parameters");
  s.scaling = v5 ? v5 : config.Object("rope_scaling");
  if (v5 && v5->Has("rope_theta")) {
    s.theta = v5->Number("rope_theta", 1.0, 1e12);
  } else {
    s.theta = config.Number("rope_theta", 1.0, 1e12);
  }
  if (s.scaling) {
    s.type = s.scaling->Has("rope_type") ? s.scaling->Text("rope_type") : s.scaling->Text("type", "default");
    if (s.type == "mrope") s.type = "default";  // sections of equal positions, for text
  }
  return s;
}

// Transformers computes in f32 with one rounding per step; so does this, which keeps the tables within one
// ulp of its.
std::vector<float> BaseFrequencies(double theta, uint32_t dims) {
  std::vector<float> power(dims / 2);
  for (uint32_t i = 0; i < dims / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dims);
    power[i] = static_cast<float>(
        std::pow(static_cast<double>(static_cast<float>(theta)), static_cast<double>(exponent)));
  }
  return power;  // theta^(2i/d); its inverse is the frequency
}

double Mscale(double factor, double m) { return factor <= 1 ? 1.0 : 0.1 * m * std::log(factor) + 1.0; }

void Llama3(ConfigReader& c, RopeSpec* rope) {
  const double factor = c.Number("factor", 1, 1e6);
  const double low = c.Number("low_freq_factor", 1e-6, 1e6);
  const double high = c.Number("high_freq_factor", 1e-6, 1e6);
  const double original = c.Number("original_max_position_embeddings", 1, 1e9);
  if (!c.ok()) return;
  for (float& w : rope->inv_freq) {
    const double wavelength = 2 * std::numbers::pi / w;
    if (wavelength < original / high) continue;
    if (wavelength > original / low || high == low) {
      w = static_cast<float>(w / factor);
    } else {
      const double smooth = (original / wavelength - low) / (high - low);
      w = static_cast<float>((1 - smooth) * w / factor + smooth * w);
    }
  }
}

// Pulls the lanes that turn slowly within `original` positions towards 1 / factor of their speed.
struct YarnRamp {
  double original = 1, factor = 1, beta_fast = 32, beta_slow = 1;
  bool truncate = true;
};
void Stretch(const YarnRamp& y, const std::vector<float>& power, double theta, uint32_t dims,
             RopeSpec* rope) {
  // The lane whose wave makes r turns within the original context.
  const auto lane = [&](double r) {
    return dims * std::log(y.original / (r * 2 * std::numbers::pi)) / (2 * std::log(theta));
  };
  double low = lane(y.beta_fast), high = lane(y.beta_slow);
  if (y.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dims - 1.0);
  if (low == high) high += 0.001;
  for (uint32_t i = 0; i < dims / 2; ++i) {
    const float ramp = static_cast<float>(std::clamp((i - low) / (high - low), 0.0, 1.0));
    const float keep = 1.0f - ramp;
    const float stretched = 1.0f / (static_cast<float>(y.factor) * power[i]);
    rope->inv_freq[i] = stretched * (1.0f - keep) + (1.0f / power[i]) * keep;
  }
}

// Two tables: short_factor up to the original context, long_factor for requests that may grow beyond it.
void LongRope(ConfigReader& config, ConfigReader& c, const std::vector<float>& power, uint32_t context,
              RopeSpec* rope) {
  const double max = static_cast<double>(context);
  double original = config.Number("original_max_position_embeddings", 1, 1e9, max);
  original = c.Number("original_max_position_embeddings", 1, 1e9, original);
  const double factor = c.Number("factor", 1e-6, 1e6, max / original);
  double scaling = factor <= 1 ? 1.0 : std::sqrt(1 + std::log(factor) / std::log(original));
  scaling = c.Number("attention_factor", 0, 1e6, scaling);
  rope->attention_scaling = static_cast<float>(c.Number("short_mscale", 0, 1e6, scaling));
  rope->long_attention_scaling = static_cast<float>(c.Number("long_mscale", 0, 1e6, scaling));
  rope->original = static_cast<uint32_t>(original);
  for (const char* key : {"short_factor", "long_factor"}) {
    const std::vector<double> factors = c.NumberList(key, 1e-6, 1e6);
    if (!c.ok()) return;
    if (factors.size() != power.size()) {
      c.Fail(key,
             "expected " + std::to_string(power.size()) + " numbers, got " + std::to_string(factors.size()));
      return;
    }
    std::vector<float>* table = key[0] == 's' ? &rope->inv_freq : &rope->long_inv_freq;
    table->resize(power.size());
    for (size_t i = 0; i < power.size(); ++i)
      (*table)[i] = 1.0f / (static_cast<float>(factors[i]) * power[i]);
  }
}

void Yarn(ConfigReader& c, const std::vector<float>& power, double theta, uint32_t dims, uint32_t context,
          RopeRead* out) {
  const double original = c.Number("original_max_position_embeddings", 1, 1e9, static_cast<double>(context));
  const double factor = c.Number("factor", 1e-6, 1e6, context / original);
  const double beta_fast = c.Number("beta_fast", 1e-6, 1e6, 32);
  const double beta_slow = c.Number("beta_slow", 1e-6, 1e6, 1);
  const bool truncate = c.Bool("truncate", true);
  const double mscale = c.Number("mscale", 0, 1e3, 0);
  const double mscale_all = c.Number("mscale_all_dim", 0, 1e3, 0);
  if (theta <= 1) c.Fail("rope_theta", "yarn needs a base above 1");
  if (!c.ok()) return;
  double scaling = mscale != 0 && mscale_all != 0 ? Mscale(factor, mscale) / Mscale(factor, mscale_all)
                                                  : Mscale(factor, 1);
  scaling = c.Number("attention_factor", 0, 1e6, scaling);
  out->rope.attention_scaling = static_cast<float>(scaling);
  if (mscale_all != 0) out->mscale_all_squared = Mscale(factor, mscale_all) * Mscale(factor, mscale_all);
  Stretch({original, factor, beta_fast, beta_slow, truncate}, power, theta, dims, &out->rope);
}

}  // namespace

RopeRead ReadRope(ConfigReader& config, uint32_t dims, bool interleaved, uint32_t context) {
  RopeRead out;
  out.rope.dims = dims;
  out.rope.interleaved = interleaved;
  Source source = FindSource(config);
  if (!config.ok()) return out;
  const std::vector<float> power = BaseFrequencies(source.theta, dims);
  for (float p : power) out.rope.inv_freq.push_back(1.0f / p);
  if (source.type == "default") return out;
  // DeepSeek's class scales its softmax under every type but "default"; yarn has its own factor rule.
  if (source.scaling && source.type != "yarn") {
    const double mscale_all = source.scaling->Number("mscale_all_dim", 0, 1e3, 0);
    const double g = Mscale(source.scaling->Number("factor", 1e-6, 1e6, 1), mscale_all);
    if (mscale_all != 0) out.mscale_all_squared = g * g;
  }
  // Dynamic NTK changes its base only beyond max_position_embeddings, which is where our context ends.
  if (source.type == "dynamic") {
    // Hunyuan's spelling of it: one base for all lengths.
    if (source.scaling->Has("alpha")) {
      const double alpha = source.scaling->Number("alpha", 1e-6, 1e12);
      if (dims <= 2) source.scaling->Fail("alpha", "expected more than 2 rotary lanes");
      if (!config.ok()) return out;
      const double base = source.theta * std::pow(alpha, dims / (dims - 2.0));
      const std::vector<float> wide = BaseFrequencies(base, dims);
      for (uint32_t i = 0; i < dims / 2; ++i) out.rope.inv_freq[i] = 1.0f / wide[i];
    }
    return out;
  }
  if (source.type == "linear") {
    const float factor = static_cast<float>(source.scaling->Number("factor", 1e-6, 1e6));
    for (float& w : out.rope.inv_freq) w /= factor;
  } else if (source.type == "llama3") {
    Llama3(*source.scaling, &out.rope);
  } else if (source.type == "yarn") {
    Yarn(*source.scaling, power, source.theta, dims, context, &out);
  } else if (source.type ==
             "frequency_factors") {  // a GGUF file's rope_freqs, applied by its converter's rule
    const std::vector<double> factors = source.scaling->NumberList("factors", 1e-6, 1e6);
    if (config.ok() && factors.size() != power.size())
      source.scaling->Fail("factors", "expected " + std::to_string(power.size()) + " numbers, got " +
                                          std::to_string(factors.size()));
    for (size_t i = 0; i < power.size() && config.ok(); ++i)
      out.rope.inv_freq[i] /= static_cast<float>(factors[i]);
  } else if (source.type == "longrope") {
    LongRope(config, *source.scaling, power, context, &out.rope);
  } else {
    source.scaling->Unsupported(
        "rope_type",
        "\"" + source.type +
            "\" is not supported; supported: default, linear, dynamic, llama3, yarn, longrope, mrope");
  }
  return out;
}

RopeSpec ReadNativeYarn(ConfigReader& config, ConfigReader* yarn, uint32_t dims, uint32_t context) {
  RopeSpec rope;
  rope.dims = dims;
  rope.interleaved = true;
  const double theta = config.Number("rope_theta", 1.0, 1e12);
  const std::vector<float> power = BaseFrequencies(theta, dims);
  for (float p : power) rope.inv_freq.push_back(1.0f / p);
  if (yarn == nullptr) return rope;
  YarnRamp y;
  y.original = yarn->Number("original_max_position_embeddings", 1, 1e9, static_cast<double>(context));
  y.factor = yarn->Number("factor", 1e-6, 1e6);
  y.beta_fast = yarn->Number("beta", 1e-6, 1e6, 32);
  y.beta_slow = yarn->Number("alpha", 1e-6, 1e6, 1);
  if (theta <= 1) config.Fail("rope_theta", "yarn needs a base above 1");
  if (config.ok()) Stretch(y, power, theta, dims, &rope);
  return rope;
}

}  // namespace consilium
