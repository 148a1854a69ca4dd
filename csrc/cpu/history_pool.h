// Memory for solver histories and large states of cells, kept from one solve to the next.
//
// A history is the one large buffer of a solve, and a training loop asks for the same one again and
// again. Given back to the operating system in between, its pages are zeroed and mapped anew each
// time, which can cost more than the solve. The pool keeps what is freed, but never holds more
// than the histories that were once alive together: it does not raise the peak of its own memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <unordered_map>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace deq {

class HistoryPool {
 public:
  static constexpr int64_t kHugePage = 2 << 20;

  // More than any machine has, and far from what 64 bits count.
  static constexpr int64_t kMostBytes = int64_t(1) << 60;

  // A buffer of at least `bytes` bytes, aligned to a large page; contents are arbitrary.
  void* take(int64_t bytes) {
    if (bytes > kMostBytes) {
      throw std::bad_alloc();
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    const int64_t wanted = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    auto kept = free_.lower_bound(wanted);
    if (kept != free_.end() && kept->first <= 2 * wanted) {
      void* const buffer = kept->second;
      live_bytes_ += kept->first;
      live_[buffer] = kept->first;
      kept_bytes_ -= kept->first;
      free_.erase(kept);
      return buffer;
    }
    const int64_t peak = std::max(peak_bytes_, live_bytes_ + wanted);
    trim(peak - wanted);
    void* buffer = allocate(wanted);
    if (buffer == nullptr) {
      trim(live_bytes_);
      buffer = allocate(wanted);
    }
    if (buffer == nullptr) {
      throw std::bad_alloc();
    }
    peak_bytes_ = peak;
    live_bytes_ += wanted;
    live_[buffer] = wanted;
    return buffer;
  }

  void give_back(void* buffer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = live_.find(buffer);
    const int64_t bytes = found->second;
    live_.erase(found);
    live_bytes_ -= bytes;
    kept_bytes_ += bytes;
    free_.emplace(bytes, buffer);
  }

  // Returns everything that is not in use to the operating system; how many bytes that was.
  int64_t release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    const int64_t released = kept_bytes_;
    peak_bytes_ = live_bytes_;
    trim(live_bytes_);
    return released;
  }

  int64_t kept_bytes() const { return kept_bytes_; }

  // Around a fork: the child has a copy of the lock and none of the threads that could open it.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  // Frees kept buffers, largest first, until live and kept ones together fit `limit` bytes.
  void trim(int64_t limit) {
    while (!free_.empty() && live_bytes_ + kept_bytes_ > limit) {
      const auto largest = std::prev(free_.end());
      kept_bytes_ -= largest->first;
      std::free(largest->second);
      free_.erase(largest);
    }
  }

  static void* allocate(int64_t bytes) {
    void* const buffer = std::aligned_alloc(kHugePage, static_cast<size_t>(bytes));
#if defined(MADV_HUGEPAGE)
    if (buffer != nullptr) {  // only advice: refused, it changes nothing but speed
      madvise(buffer, static_cast<size_t>(bytes), MADV_HUGEPAGE);
    }
#endif
    return buffer;
  }

  std::mutex mutex_;
  std::multimap<int64_t, void*> free_;
  std::unordered_map<void*, int64_t> live_;
  int64_t live_bytes_ = 0;
  int64_t kept_bytes_ = 0;
  int64_t peak_bytes_ = 0;
};

// Of this process.
HistoryPool& history_pool();

}  // namespace deq
