// Advice to the operating system about large buffers.
#include <torch/csrc/stable/library.h>

#include <cstdint>

#include "cpu/checks.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace deq {
namespace {

// A fresh history is written row by row, and the first touch of every page traps into the kernel:
// on small pages that costs more than the solver step itself. Where the system grants large pages
// on request, request them. Advice that is refused changes nothing but speed, so its result does
// not matter.
void advise_huge_pages(const Tensor& memory) {
#if defined(MADV_HUGEPAGE)
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(memory.data_ptr());
  const uintptr_t end = begin + memory.numel() * memory.element_size();
  const uintptr_t first = (begin + page - 1) / page * page;
  const uintptr_t last = end / page * page;
  if (first < last) {
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#else
  (void)memory;
#endif
}

}  // namespace
}  // namespace deq

STABLE_TORCH_LIBRARY_IMPL(deq_kernels, CPU, m) {
  m.impl("advise_huge_pages_", TORCH_BOX(&deq::advise_huge_pages));
}
