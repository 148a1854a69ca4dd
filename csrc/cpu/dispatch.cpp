// Chooses the instruction set once, at the first use.
#include <cstdlib>
#include <cstring>

#include "cpu/cells/differences.h"
#include "cpu/cells/tiles.h"
#include "cpu/tiles.h"

namespace deq {
namespace {

enum class Isa { kBaseline, kAvx2, kAvx512, kAvx512BFloat16 };

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16"};

Isa newest() {
  Isa best = Isa::kBaseline;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    best = Isa::kAvx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      best = __builtin_cpu_supports("avx512bf16") ? Isa::kAvx512BFloat16 : Isa::kAvx512;
    }
  }
#endif
  return best;
}

Isa detect() {
  const Isa best = newest();
  const char* wanted = std::getenv("DEQ_KERNELS_CPU_ISA");
  for (int older = 0; wanted != nullptr && older < static_cast<int>(best); ++older) {
    if (std::strcmp(wanted, kNames[older]) == 0) {
      return static_cast<Isa>(older);
    }
  }
  return best;
}

Isa isa() {
  static const Isa chosen = detect();
  return chosen;
}

}  // namespace

const char* active_isa() { return kNames[static_cast<int>(isa())]; }

template <typename state_t>
const StateTiles<state_t>& state_tiles() {
#if defined(__x86_64__)
  if (isa() >= Isa::kAvx512) {
    return avx512::state_tiles<state_t>();
  }
  if (isa() == Isa::kAvx2) {
    return avx2::state_tiles<state_t>();
  }
#endif
  return baseline::state_tiles<state_t>();
}

template <typename history_t, typename accum_t>
const HistoryTiles<history_t, accum_t>& history_tiles() {
#if defined(__x86_64__)
  if (isa() >= Isa::kAvx512) {
    return avx512::history_tiles<history_t, accum_t>();
  }
  if (isa() == Isa::kAvx2) {
    return avx2::history_tiles<history_t, accum_t>();
  }
#endif
  return baseline::history_tiles<history_t, accum_t>();
}

template <typename accum_t>
const CellTiles<accum_t>& cell_tiles() {
#if defined(__x86_64__)
  if (isa() >= Isa::kAvx512) {
    return avx512::cell_tiles<accum_t>();
  }
  if (isa() == Isa::kAvx2) {
    return avx2::cell_tiles<accum_t>();
  }
#endif
  return baseline::cell_tiles<accum_t>();
}

const CellDifferences* cell_differences() {
#if defined(__x86_64__)
  if (isa() == Isa::kAvx512BFloat16) {
    return &avx512_bf16::cell_differences();
  }
#endif
  return nullptr;
}

template const StateTiles<double>& state_tiles();
template const StateTiles<float>& state_tiles();
template const StateTiles<float16>& state_tiles();
template const StateTiles<bfloat16>& state_tiles();
template const HistoryTiles<double, double>& history_tiles();
template const HistoryTiles<float, double>& history_tiles();
template const HistoryTiles<float16, double>& history_tiles();
template const HistoryTiles<bfloat16, double>& history_tiles();
template const HistoryTiles<float, float>& history_tiles();
template const HistoryTiles<float16, float>& history_tiles();
template const HistoryTiles<bfloat16, float>& history_tiles();
template const CellTiles<double>& cell_tiles();
template const CellTiles<float>& cell_tiles();

}  // namespace deq

extern "C" __attribute__((visibility("default"))) const char* deq_kernels_active_isa() {
  return deq::active_isa();
}
