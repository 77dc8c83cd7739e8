#include "common/placement/planner.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "common/base/status.h"

namespace consilium {
namespace {

constexpr double kEps = 1e-9;
constexpr int kRoundsMax = 8;

// The plan while it is made. Shards and experts by index; shards in order of their names.
class Planner {
 public:
  Planner(std::span<const PlanShard> shards, std::span<const PlanExpert> experts, const PlanOptions& options)
      : shards_(shards.begin(), shards.end()), experts_(experts), options_(options) {
    std::sort(shards_.begin(), shards_.end(), [](const PlanShard& a, const PlanShard& b) {
      return a.name != b.name ? a.name < b.name : a.id < b.id;
    });
    copies_wanted_ = std::min<size_t>(options.replicas, shards_.size());
    moved_budget_ = options.rebalance_bytes_max == 0 ? ~uint64_t{0} : options.rebalance_bytes_max;
    weight_.resize(shards_.size());
    bytes_.resize(shards_.size());
    held_.resize(shards_.size());
    shared_.resize(shards_.size() * shards_.size());
    at_.resize(experts.size());
    SetExpertWeights();
  }

  Plan Make() {
    Plan plan;
    if (copies_wanted_ > 0) {
      KeepWhatIsThere();
      // A move can open room for a copy that found none, and the other way round: on to the fixed point, so
      // that the next plan has nothing to do.
      for (int round = 0; round < kRoundsMax; ++round) {
        plan.fit = absl::OkStatus();
        plan.short_copies = 0;
        bool changed = false;
        for (size_t copy = 1; copy <= copies_wanted_; ++copy) changed |= Fill(copy, &plan);
        changed |= Rebalance();
        if (!changed) break;
      }
    }
    Finish(&plan);
    return plan;
  }

 private:
  void SetExpertWeights() {
    double mean = 0;
    for (const PlanExpert& e : experts_) mean += e.load;
    mean = experts_.empty() ? 0 : mean / static_cast<double>(experts_.size());
    const double copies = static_cast<double>(std::max<size_t>(copies_wanted_, 1));
    for (const PlanExpert& e : experts_) {
      expert_weight_.push_back((mean > 0 ? (e.load + mean) / (2 * mean) : 1.0) / copies);
    }
  }

  bool Holds(size_t shard, size_t expert) const {
    return std::find(at_[expert].begin(), at_[expert].end(), shard) != at_[expert].end();
  }
  bool Barred(size_t shard, size_t expert) const {
    const std::vector<ShardId>& barred = experts_[expert].barred;
    return std::find(barred.begin(), barred.end(), shards_[shard].id) != barred.end();
  }
  bool Fits(size_t shard, size_t expert) const {
    if (Barred(shard, expert)) return false;
    const uint64_t capacity = shards_[shard].capacity_bytes;
    return capacity == 0 || bytes_[shard] + experts_[expert].bytes <= capacity;
  }
  double Filled(size_t shard, double more = 0) const {
    return (weight_[shard] + more) / shards_[shard].speed;
  }

  // Called while `shard` is not among the expert's.
  void Share(size_t shard, size_t expert, uint32_t by) {
    for (const size_t s : at_[expert]) {
      shared_[shard * shards_.size() + s] += by;
      shared_[s * shards_.size() + shard] += by;
    }
  }
  void Put(size_t shard, size_t expert) {
    Share(shard, expert, 1);
    at_[expert].push_back(shard);
    held_[shard].insert(expert);
    weight_[shard] += expert_weight_[expert];
    bytes_[shard] += experts_[expert].bytes;
  }
  void Take(size_t shard, size_t expert) {
    std::erase(at_[expert], shard);
    Share(shard, expert, static_cast<uint32_t>(-1));
    held_[shard].erase(expert);
    weight_[shard] -= expert_weight_[expert];
    bytes_[shard] -= experts_[expert].bytes;
  }

  // Copies on listed shards within their capacity, the wanted and ready ones first, at most as many as
  // wanted.
  void KeepWhatIsThere() {
    for (int pass = 0; pass < 4; ++pass) {
      const bool wanted = pass == 0 || pass == 1, ready = pass == 0 || pass == 2;
      for (size_t e = 0; e < experts_.size(); ++e) {
        std::vector<size_t> here;
        for (const PlanCopy& copy : experts_[e].copies) {
          if (copy.wanted != wanted || copy.ready != ready) continue;
          const auto shard = std::find_if(shards_.begin(), shards_.end(),
                                          [&](const PlanShard& s) { return s.id == copy.shard; });
          if (shard != shards_.end()) here.push_back(static_cast<size_t>(shard - shards_.begin()));
        }
        std::sort(here.begin(), here.end(),
                  [&](size_t a, size_t b) { return Filled(a) != Filled(b) ? Filled(a) < Filled(b) : a < b; });
        for (const size_t shard : here) {
          if (at_[e].size() < copies_wanted_ && !Holds(shard, e) && Fits(shard, e)) Put(shard, e);
        }
      }
    }
  }

  const std::string& Domain(size_t shard) const {
    return shards_[shard].domain.empty() ? shards_[shard].name : shards_[shard].domain;
  }
  // Another copy of the expert (not that on `except`) lies in the shard's failure domain.
  bool DomainTaken(size_t shard, size_t expert, size_t except) const {
    return std::any_of(at_[expert].begin(), at_[expert].end(),
                       [&](size_t s) { return s != except && Domain(s) == Domain(shard); });
  }

  // Experts that the shard holds together with the shards of this expert. Few: when one shard is lost, its
  // experts have their other copies, and find their new ones, on all others.
  uint32_t Shared(size_t shard, size_t expert) const {
    uint32_t sum = 0;
    for (const size_t s : at_[expert]) sum += shared_[shard * shards_.size() + s];
    return sum;
  }

  bool Better(size_t a, size_t b, size_t expert) const {
    const bool a_taken = DomainTaken(a, expert, shards_.size()),
               b_taken = DomainTaken(b, expert, shards_.size());
    if (a_taken != b_taken) return b_taken;
    const double a_fill = Filled(a, expert_weight_[expert]), b_fill = Filled(b, expert_weight_[expert]);
    if (std::abs(a_fill - b_fill) > kEps) return a_fill < b_fill;
    return Shared(a, expert) < Shared(b, expert);
  }

  // The shard that should take one more copy of the expert; size() if none can.
  size_t BestShard(size_t expert) const {
    size_t best = shards_.size();
    for (size_t s = 0; s < shards_.size(); ++s) {
      if (Holds(s, expert) || !Fits(s, expert)) continue;
      if (best == shards_.size() || Better(s, best, expert)) best = s;
    }
    return best;
  }

  // Frees room for a first copy: gives up second copies on the shard where that takes the fewest.
  size_t MakeRoom(size_t expert) {
    size_t best = shards_.size();
    std::vector<size_t> victims;
    for (size_t s = 0; s < shards_.size(); ++s) {
      if (shards_[s].capacity_bytes == 0 || Barred(s, expert)) continue;
      uint64_t freed = 0;
      std::vector<size_t> here;
      for (const size_t other : held_[s]) {
        if (at_[other].size() < 2) continue;
        here.push_back(other);
        freed += experts_[other].bytes;
        if (bytes_[s] - freed + experts_[expert].bytes <= shards_[s].capacity_bytes) {
          if (best == shards_.size() || here.size() < victims.size()) best = s, victims = here;
          break;
        }
      }
    }
    for (const size_t other : victims) Take(best, other);
    return best;
  }

  // Returns whether something was put.
  bool Fill(size_t copy, Plan* plan) {
    bool changed = false;
    std::vector<size_t> missing;
    for (size_t e = 0; e < experts_.size(); ++e) {
      if (at_[e].size() < copy) missing.push_back(e);
    }
    std::stable_sort(missing.begin(), missing.end(),
                     [&](size_t a, size_t b) { return experts_[a].load > experts_[b].load; });
    std::vector<size_t> homeless;
    for (const size_t e : missing) {
      size_t shard = BestShard(e);
      if (shard == shards_.size() && copy == 1) shard = MakeRoom(e);
      if (shard < shards_.size()) {
        Put(shard, e);
        changed = true;
      } else if (copy == 1) {
        homeless.push_back(e);
      } else {
        ++plan->short_copies;
      }
    }
    if (!homeless.empty()) plan->fit = DoesNotFit(homeless);
    return changed;
  }

  absl::Status DoesNotFit(const std::vector<size_t>& homeless) const {
    uint64_t needed = 0, there = 0;
    for (const PlanExpert& e : experts_) needed += e.bytes;
    for (const PlanShard& s : shards_) there += s.capacity_bytes;
    const PlanExpert& first = experts_[homeless.front()];
    return ResourceExhausted("the experts do not fit: " + std::to_string(homeless.size()) + " of " +
                             std::to_string(experts_.size()) + " found no shard (layer " +
                             std::to_string(first.layer.value) + " expert " +
                             std::to_string(first.expert.value) + " first); one copy of each needs " +
                             std::to_string(needed) + " bytes, " + std::to_string(shards_.size()) +
                             " shards have " + std::to_string(there));
  }

  // The copy is there already, so moving it costs a load.
  bool Exists(size_t shard, size_t expert) const {
    return std::any_of(experts_[expert].copies.begin(), experts_[expert].copies.end(),
                       [&](const PlanCopy& copy) { return copy.shard == shards_[shard].id; });
  }

  bool MayMove(size_t expert, size_t from, size_t to) const {
    return !Holds(to, expert) && Fits(to, expert) &&
           (!DomainTaken(to, expert, from) || DomainTaken(from, expert, from));
  }

  // One move off the fullest shard that has one which lowers the higher of the two fills; false: none.
  bool MoveOne(double mean_fill, bool only_new, uint64_t* budget) {
    // A quarter of a mean expert: loads are measured, and noise must not move experts about.
    const double gain_min = 0.25 / static_cast<double>(copies_wanted_);
    std::vector<size_t> order(shards_.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return Filled(a) > Filled(b); });
    for (const size_t from : order) {
      if (Filled(from) <= mean_fill + kEps) return false;
      for (auto it = order.rbegin(); it != order.rend() && *it != from; ++it) {
        const size_t to = *it;
        size_t best = experts_.size();
        double best_fill = Filled(from) - gain_min / shards_[from].speed + 2 * kEps;
        for (const size_t e : held_[from]) {
          if (only_new && Exists(from, e)) continue;
          const double after = std::max(Filled(from, -expert_weight_[e]), Filled(to, expert_weight_[e]));
          if (after + kEps < best_fill && experts_[e].bytes <= *budget && MayMove(e, from, to)) {
            best = e;
            best_fill = after;
          }
        }
        if (best == experts_.size()) continue;
        *budget -= experts_[best].bytes;
        Take(from, best);
        Put(to, best);
        return true;
      }
    }
    return false;
  }

  // Equal loads are balanced to one expert. Measured ones only once a shard is off the mean by more than the
  // slack and one expert; then thoroughly, so that the next plan has nothing to do.
  bool OutOfBalance(double mean_fill) const {
    const bool equal = std::all_of(experts_.begin(), experts_.end(),
                                   [&](const PlanExpert& e) { return e.load == experts_.front().load; });
    if (equal) return true;
    for (size_t s = 0; s < shards_.size(); ++s) {
      const double one = 1 / (static_cast<double>(copies_wanted_) * shards_[s].speed);
      if (std::abs(Filled(s) - mean_fill) > options_.slack * mean_fill + one) return true;
    }
    return false;
  }

  // Each move lowers the fills in descending order, so this ends; the bound is a net under rounding.
  bool Rebalance() {
    const double total = std::accumulate(weight_.begin(), weight_.end(), 0.0);
    double speed = 0;
    for (const PlanShard& s : shards_) speed += s.speed;
    const double mean_fill = total / speed;
    const size_t moves_max = experts_.size() * copies_wanted_ * 2 + 16;
    size_t moves = 0;
    uint64_t budget = ~uint64_t{0};
    while (moves < moves_max && MoveOne(mean_fill, true, &budget)) ++moves;  // copies not made yet: free
    if (OutOfBalance(mean_fill)) {
      while (moves < moves_max && MoveOne(mean_fill, false, &moved_budget_)) ++moves;
    }
    return moves > 0;
  }

  void Finish(Plan* plan) const {
    for (size_t e = 0; e < experts_.size(); ++e) {
      std::vector<ShardId> ids;
      for (const size_t s : at_[e]) ids.push_back(shards_[s].id);
      std::sort(ids.begin(), ids.end());
      size_t kept = 0, there = 0;
      for (const PlanCopy& copy : experts_[e].copies) {
        const bool listed = std::any_of(shards_.begin(), shards_.end(),
                                        [&](const PlanShard& s) { return s.id == copy.shard; });
        there += listed ? 1 : 0;
        kept += std::binary_search(ids.begin(), ids.end(), copy.shard) ? 1 : 0;
      }
      plan->loads += static_cast<uint32_t>(ids.size() - kept);
      plan->surplus += static_cast<uint32_t>(there - kept);
      plan->shards.push_back(std::move(ids));
    }
    if (shards_.empty() && !experts_.empty())
      plan->fit = ResourceExhausted("the experts do not fit: no shard is there");
  }

  std::vector<PlanShard> shards_;
  std::span<const PlanExpert> experts_;
  const PlanOptions& options_;
  size_t copies_wanted_ = 0;
  uint64_t moved_budget_ = 0;  // bytes that may still move for balance
  std::vector<double> expert_weight_;
  std::vector<double> weight_;           // of each shard
  std::vector<uint64_t> bytes_;          // of each shard
  std::vector<std::set<size_t>> held_;   // experts of each shard
  std::vector<uint32_t> shared_;         // [shards, shards] experts held by both
  std::vector<std::vector<size_t>> at_;  // shards of each expert
};

}  // namespace

Plan MakePlan(std::span<const PlanShard> shards, std::span<const PlanExpert> experts,
              const PlanOptions& options) {
  return Planner(shards, experts, options).Make();
}

bool MayDrop(const PlanExpert& expert, std::span<const ShardId> wanted, ShardId shard) {
  if (wanted.empty() || std::find(wanted.begin(), wanted.end(), shard) != wanted.end()) return false;
  return std::all_of(wanted.begin(), wanted.end(), [&](ShardId id) {
    return std::any_of(expert.copies.begin(), expert.copies.end(),
                       [&](const PlanCopy& copy) { return copy.shard == id && copy.ready; });
  });
}

}  // namespace consilium
