#include "cuda/regime.h"

#include <atomic>
#include <cstring>

#include "cuda/plan.h"

namespace deq {
namespace {

std::atomic<const char*> forced{""};

}  // namespace

const char* forced_regime() { return forced.load(std::memory_order_relaxed); }

}  // namespace deq

// Called through ctypes. Returns 0, or -1 where there is no regime of that name.
extern "C" __attribute__((visibility("default"))) int deq_kernels_force_regime(const char* name) {
  if (*name == '\0') {
    deq::forced.store("");
    return 0;
  }
  for (const deq::GpuRegime regime :
       {deq::GpuRegime::kBlock, deq::GpuRegime::kCluster, deq::GpuRegime::kGrid}) {
    if (std::strcmp(name, deq::regime_name(regime)) == 0) {
      deq::forced.store(deq::regime_name(regime));
      return 0;
    }
  }
  return -1;
}
