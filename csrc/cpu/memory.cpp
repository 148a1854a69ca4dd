// Buffers for solver histories, drawn from the pool.
#include <pthread.h>
#include <torch/csrc/stable/library.h>

#include "cpu/history_pool.h"
#include "torch/checks.h"

namespace deq {

namespace {

// Never destroyed: tensors may outlive every static object.
HistoryPool* const kPool = new HistoryPool();

// A thread forks with the lock in its hands, so that the child, which has no other thread, finds
// what it guards whole and can open it.
const int kForkHandlers =
    pthread_atfork([] { kPool->lock(); }, [] { kPool->unlock(); }, [] { kPool->unlock(); });

}  // namespace

HistoryPool& history_pool() { return *kPool; }

namespace {

// `like` only chooses the device.
Tensor history_memory(const Tensor& like, int64_t bytes) {
  (void)like;
  STD_TORCH_CHECK(kForkHandlers == 0, "the library had no room for its fork handlers");
  STD_TORCH_CHECK(bytes > 0, "history_memory must be asked for at least one byte, got ", bytes);
  void* buffer = nullptr;
  try {
    buffer = history_pool().take(bytes);
  } catch (const std::bad_alloc&) {
    STD_TORCH_CHECK(false, "there is no room for a solver history of ", bytes,
                    " bytes; lower history_length or the batch size, or store it in bfloat16");
  }
  const int64_t sizes[] = {bytes};
  const int64_t strides[] = {1};
  return torch::stable::from_blob(
      buffer, {sizes, 1}, {strides, 1}, torch::stable::Device(torch::headeronly::DeviceType::CPU),
      ScalarType::Byte, [](void* freed) { history_pool().give_back(freed); });
}

}  // namespace
}  // namespace deq

STABLE_TORCH_LIBRARY_IMPL(deq_kernels, CPU, m) {
  m.impl("history_memory", TORCH_BOX(&deq::history_memory));
}

// Called through ctypes: there is no tensor from which an op could take its device.
extern "C" __attribute__((visibility("default"))) int64_t deq_kernels_empty_cache() {
  return deq::history_pool().release();
}
