#include "services/attention/step_planner.h"

#include <algorithm>

#include "common/base/limits.h"

namespace consilium {
namespace {

uint32_t Pages(uint32_t tokens) { return (tokens + kKvBlockTokens - 1) / kKvBlockTokens; }

// Rows still to give out, and the flights they go to.
struct Room {
  uint32_t flights = 0;  // new ones
  uint32_t rows_per_flight = 0;
  uint32_t rows = 0;  // in all
};

class Planner {
 public:
  Planner(const SchedulerView& view, const StepLimits& limits, StepPlan* plan)
      : view_(view),
        limits_(limits),
        plan_(plan),
        pages_(view.available_blocks),
        states_(view.available_states) {
    state_.assign(view.sequences.size(), State::kIdle);
  }

  void Run() {
    SizeRooms();
    if (decode_.rows == 0 && prompt_.rows == 0) return;
    for (uint32_t i = 0; i < view_.sequences.size(); ++i) Place(i);
    for (PlannedFlight& flight : plan_->flights) {
      if (limits_.flights == 1) {
        flight.decode_only =
            std::all_of(flight.sequences.begin(), flight.sequences.end(),
                        [&](const PlannedSequence& s) { return view_.sequences[s.index].decode; });
      }
    }
  }

 private:
  enum class State : uint8_t { kIdle, kPlanned, kPreempted };

  void SizeRooms() {
    uint32_t decode_ready = 0, prompts_ready = 0;
    for (const SchedulerSequence& s : view_.sequences) {
      if (s.in_flight) continue;
      ++(s.decode ? decode_ready : prompts_ready);
    }
    const uint32_t in_air = view_.decode_flights + view_.prompt_flights;
    if (in_air >= limits_.flights) return;
    const uint32_t room = limits_.flights - in_air, rows_max = limits_.flight_rows_max;
    if (limits_.flights == 1) {
      // Decode first, but prompts always get a share where there is one, or full decode batches would stop
      // admission.
      const uint32_t decode_max = prompts_ready > 0 ? std::max(1u, rows_max - rows_max / 4) : rows_max;
      decode_ = {1, rows_max, std::min(decode_ready, decode_max)};
      prompt_ = {1, rows_max, rows_max - decode_.rows};
      return;
    }
    const bool prompts = prompts_ready > 0 || view_.prompt_flights > 0;
    const uint32_t wanted =
        std::min(DecodeFlights(view_, limits_, decode_ready), limits_.flights - (prompts ? 1 : 0));
    if (decode_ready > 0 && view_.decode_flights < wanted) {
      decode_.flights = std::min(room, wanted - view_.decode_flights);
      decode_.rows_per_flight = std::min(rows_max, (decode_ready + decode_.flights - 1) / decode_.flights);
      decode_.rows = decode_.flights * decode_.rows_per_flight;
    }
    const uint32_t prompt_max = limits_.flights - 1;
    if (prompts_ready > 0 && view_.prompt_flights < prompt_max) {
      prompt_.flights = std::min(room - decode_.flights, prompt_max - view_.prompt_flights);
      prompt_.rows_per_flight = rows_max;
      prompt_.rows = prompt_.flights * rows_max;
    }
  }

  void Place(uint32_t index) {
    const SchedulerSequence& s = view_.sequences[index];
    if (s.in_flight || state_[index] != State::kIdle) return;
    Room& room = s.decode ? decode_ : prompt_;
    const uint32_t wanted = s.tokens - s.computed;
    const uint32_t chunk =
        s.decode || limits_.prefill_chunk == 0 ? wanted : std::min(wanted, limits_.prefill_chunk);
    const uint32_t rows = std::min(chunk, RoomOfOneFlight(room, s.decode));
    if (rows == 0) return;
    const uint32_t pages = s.blocks == 0 ? Pages(s.tokens) : Pages(s.computed + rows);
    const uint32_t states = !view_.has_states ? 0 : s.computed == 0 && s.blocks == 0 ? 2 : 1;
    if (!Claim(index, pages > s.blocks ? pages - s.blocks : 0, states)) return;
    state_[index] = State::kPlanned;
    PlannedFlight& flight = FlightFor(room, s.decode);
    flight.sequences.push_back({index, rows});
    flight.rows += rows;
    room.rows -= rows;
  }

  // Takes pages and states for a sequence, from younger ones if it must.
  bool Claim(uint32_t index, uint32_t pages, uint32_t states) {
    if (pages == 0 && states == 0) return true;
    if (short_) return false;
    const auto enough = [&] { return pages <= pages_ && states <= states_; };
    for (size_t v = view_.sequences.size(); !enough() && v-- > index + 1;) {
      const SchedulerSequence& victim = view_.sequences[v];
      if (victim.in_flight || victim.blocks == 0 || state_[v] != State::kIdle) continue;
      state_[v] = State::kPreempted;
      plan_->preempt.push_back(static_cast<uint32_t>(v));
      pages_ += victim.sole_blocks;
      states_ += victim.sole_states;
    }
    if (!enough()) {
      short_ = true;
      return false;
    }
    pages_ -= pages;
    states_ -= states;
    return true;
  }

  // Rows that one sequence can still get in one flight of its kind.
  uint32_t RoomOfOneFlight(const Room& room, bool decode) const {
    if (room.rows == 0) return 0;
    const Open& open = decode ? open_decode_ : open_prompt_;
    if (limits_.flights == 1) return room.rows;
    if (open.count == 0) return room.rows_per_flight;
    const uint32_t left = room.rows_per_flight - plan_->flights[open.last].rows;
    return left > 0 ? left : (open.count < room.flights ? room.rows_per_flight : 0);
  }

  PlannedFlight& FlightFor(const Room& room, bool decode) {
    if (limits_.flights == 1) {
      return plan_->flights.empty() ? plan_->AddFlight(false) : plan_->flights[0];
    }
    Open& open = decode ? open_decode_ : open_prompt_;
    if (open.count == 0 || plan_->flights[open.last].rows >= room.rows_per_flight) {
      ++open.count;
      open.last = static_cast<uint32_t>(plan_->flights.size());
      plan_->AddFlight(decode);
    }
    return plan_->flights[open.last];
  }

  const SchedulerView& view_;
  const StepLimits& limits_;
  StepPlan* const plan_;
  uint32_t pages_, states_;  // to be had
  bool short_ = false;
  Room decode_, prompt_;
  struct Open {
    uint32_t count = 0, last = 0;  // flights begun; the last one's index in plan_->flights
  };
  Open open_decode_, open_prompt_;
  static thread_local std::vector<State> state_;  // of each sequence; kept, since a step must not allocate
};
thread_local std::vector<Planner::State> Planner::state_;

}  // namespace

void StepPlan::Clear() {
  preempt.clear();
  for (PlannedFlight& flight : flights) spare_.push_back(std::move(flight));
  flights.clear();
}

PlannedFlight& StepPlan::AddFlight(bool decode_only) {
  PlannedFlight flight;
  if (!spare_.empty()) {
    flight = std::move(spare_.back());
    spare_.pop_back();
  }
  flight.decode_only = decode_only;
  flight.rows = 0;
  flight.sequences.clear();
  flights.push_back(std::move(flight));
  return flights.back();
}

uint32_t DecodeFlights(const SchedulerView& view, const StepLimits& limits, uint32_t ready_rows) {
  if (limits.flights < 2 || view.link_us <= 2 * view.compute_us) return 1;
  return std::clamp(ready_rows / std::max(1u, limits.split_rows_min), 1u, limits.flights);
}

void PlanStep(const SchedulerView& view, const StepLimits& limits, StepPlan* plan) {
  plan->Clear();
  Planner(view, limits, plan).Run();
}

}  // namespace consilium
