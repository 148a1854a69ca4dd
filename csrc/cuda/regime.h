// The regime that tests and measurements force on every launch of the process.
#pragma once

namespace deq {

// "" where the planner decides.
const char* forced_regime();

}  // namespace deq
