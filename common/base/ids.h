// Strong ids: each is a different type, so that an expert is never passed where a layer is meant.
#pragma once
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace consilium {

template <class Tag, class Rep>
struct StrongId {
  using rep = Rep;
  Rep value = 0;
  constexpr StrongId() = default;
  constexpr explicit StrongId(Rep v) : value(v) {}
  constexpr auto operator<=>(const StrongId&) const = default;
};

using TokenId = uint32_t;   // vocabulary index; plain, since it is a number to models and samplers
using Position = uint32_t;  // index of a token in its sequence, from 0

using ModelIx = StrongId<struct ModelTag, uint32_t>;    // router-scoped index of a model (WIRE.md, HELLO)
using LayerId = StrongId<struct LayerTag, uint16_t>;    // decoder layer, from 0, dense layers counted
using ExpertId = StrongId<struct ExpertTag, uint16_t>;  // routed expert within its layer
using ShardId =
    StrongId<struct ShardTag, uint32_t>;  // an expert shard, given by the controller, never reused in a term
using CallId = StrongId<struct CallTag, uint64_t>;  // one expert call; rises per (router, shard, lane) stream
using FlightId = StrongId<struct FlightTag, uint32_t>;  // slot of a micro-batch in flight
using KvBlockId = StrongId<struct KvBlockTag, uint32_t>;
using StateId = StrongId<struct StateTag, uint32_t>;  // slot of a recurrent state

// Placement epoch: (lease term, sequence). Information only on data calls; never a reason to reject one.
struct Epoch {
  uint64_t value = 0;
  static constexpr Epoch Make(uint32_t term, uint64_t sequence) {
    return Epoch{(uint64_t{term} << 40) | (sequence & ((uint64_t{1} << 40) - 1))};
  }
  constexpr uint32_t term() const { return static_cast<uint32_t>(value >> 40); }
  constexpr auto operator<=>(const Epoch&) const = default;
};

}  // namespace consilium

template <class Tag, class Rep>
struct std::hash<consilium::StrongId<Tag, Rep>> {
  size_t operator()(const consilium::StrongId<Tag, Rep>& id) const noexcept {
    return std::hash<Rep>{}(id.value);
  }
};
