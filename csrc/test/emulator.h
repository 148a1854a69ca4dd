// A host stand-in for the blocks and clusters of a GPU: runs the bodies of the CUDA kernels.
//
// Every thread of a cluster is a fiber. A fiber runs until it meets a barrier or a shuffle, and
// goes on when everybody whom the barrier joins has arrived. What a GPU leaves open is made as
// hostile as possible: shared memory begins as NaN, on an address that is a multiple of 16 and of
// no more, asynchronous copies land only when they are waited for, and the order in which threads
// run is chosen by the test, so that a missing barrier shows as a result that depends on it.
//
// Errors are: a barrier that some thread never reaches; a copy or a pack (tile.h) on an address
// that is not aligned to its width; the shared memory of another block that has not begun, or has
// left. Who still has a pointer to that of a block that has left reads NaN; what is written there
// is found at the end.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/copy_groups.h"
#include "cuda/plan.h"
#include "test/shared_memory.h"
#include "test/stack_notes.h"

namespace deq_test {

// With kBlockByBlock a block goes on until it waits for the others of its cluster.
enum class Order { kForwards, kBackwards, kInterleaved, kBlockByBlock };

class Emulator {
 public:
  class Block;
  using Body = std::function<void(const Block&)>;

  explicit Emulator(Order order = Order::kForwards) : order_(order) {}

  // Runs `clusters` clusters of `ranks` blocks, one after the other.
  void run(int64_t clusters, int ranks, int64_t shared_bytes, const Body& body);

 private:
  enum class State { kReady, kAtWarp, kAtBlock, kAtCluster, kDone };

  struct Copy {
    const void* from;
    void* to;
  };

  struct Fiber {
    ucontext_t start;
    jmp_buf place;  // where it waits; jumping there, unlike swapcontext, asks nothing of the system
    bool started = false;
    std::unique_ptr<char[]> stack;
    StackNotes notes;
    State state = State::kReady;
    int shuffles = 0;
    std::vector<std::vector<Copy>> copies = {{}};  // the last group is open
  };

  // What the threads of a warp show each other; two buffers, so that one barrier is enough.
  struct Exchange {
    char values[2][deq::kGpuWarp][16];
  };

  static constexpr size_t kStackBytes = 64 << 10;

  void run_cluster();
  // Every thread of [first, first + count) that can go on, once; whether any could.
  bool run_once(int first, int count);
  void prepare(int thread);
  void resume(int thread);
  void wait(int thread, State state);
  // Whether all of [first, first + count) wait at `state`; then they go on.
  bool release(int first, int count, State state);
  static void enter(unsigned high, unsigned low, unsigned thread);
  // The first thread of a block begins with it, and the last one to end leaves with it.
  void begin_block(int thread);
  void leave_block(int thread);

  Order order_;
  const Body* body_ = nullptr;
  int64_t cluster_ = 0;
  int64_t clusters_ = 0;
  int ranks_ = 0;
  std::vector<Fiber> fibers_;
  std::vector<Exchange> exchanges_;
  std::vector<SharedMemory> shared_;  // of each block
  jmp_buf scheduler_;
  StackNotes scheduler_notes_;
  std::string failure_;
};

class Emulator::Block {
 public:
  Block(Emulator* emulator, int fiber) : emulator_(emulator), fiber_(fiber) {}

  int thread() const { return fiber_ % deq::kGpuThreads; }
  int lane() const { return thread() % deq::kGpuWarp; }
  int warp() const { return thread() / deq::kGpuWarp; }
  int rank() const { return fiber_ / deq::kGpuThreads; }
  int ranks() const { return emulator_->ranks_; }
  int64_t problem() const { return emulator_->cluster_; }
  int64_t index() const { return emulator_->cluster_ * ranks() + rank(); }
  int64_t blocks() const { return emulator_->clusters_ * ranks(); }
  char* shared() const { return shared_of(rank()); }

  void sync() const { emulator_->wait(fiber_, State::kAtBlock); }
  void sync_warp() const { emulator_->wait(fiber_, State::kAtWarp); }
  void sync_cluster() const { emulator_->wait(fiber_, State::kAtCluster); }
  // A grid that meets at a barrier runs as one cluster.
  void sync_grid() const {
    check(emulator_->clusters_ == 1, "blocks of different clusters never meet here");
    sync_cluster();
  }

  template <typename T>
  T shuffle_xor(T value, int mask) const {
    static_assert(sizeof(T) <= 16, "fits the exchange");
    Fiber& fiber = emulator_->fibers_[static_cast<size_t>(fiber_)];
    auto& buffer = emulator_->exchanges_[static_cast<size_t>(fiber_ / deq::kGpuWarp)]
                       .values[fiber.shuffles++ % 2];
    std::memcpy(buffer[lane()], &value, sizeof(T));
    sync_warp();
    std::memcpy(&value, buffer[lane() ^ mask], sizeof(T));
    return value;
  }

  // The same place in the shared memory of another block of the cluster.
  template <typename T>
  const T* of_rank(const T* mine, int rank) const {
    const SharedMemory& other = emulator_->shared_[static_cast<size_t>(rank)];
    require(other.presence() != Presence::kAhead,
            "the shared memory of a block is there for others once it has begun; meet before");
    require(other.presence() != Presence::kGone,
            "the shared memory of a block is gone once it has left; meet before it does");
    const auto offset = reinterpret_cast<const char*>(mine) - shared();
    return reinterpret_cast<const T*>(shared_of(rank) + offset);
  }

  void copy_async(const void* from, void* to) const {
    require(
        reinterpret_cast<uintptr_t>(from) % 16 == 0 && reinterpret_cast<uintptr_t>(to) % 16 == 0,
        "an asynchronous copy must begin and end where addresses are aligned to 16 bytes");
    copies().back().push_back({from, to});
  }
  void commit_copies() const { copies().emplace_back(); }
  // Waits until at most `pending` committed groups are under way.
  void wait_for_copies(int64_t pending) const {
    auto& groups = copies();
    deq::wait_with_constant(pending, [&](auto constant) {
      while (static_cast<int>(groups.size()) - 1 > constant.value) {
        for (const Copy& copy : groups.front()) {
          std::memcpy(copy.to, copy.from, 16);
        }
        groups.erase(groups.begin());
      }
    });
  }

  void subtract_one(int64_t* count) const { --*count; }
  void check(bool holds, const char* contract) const { require(holds, contract); }

 private:
  static void require(bool holds, const char* contract) {
    if (!holds) {
      throw std::runtime_error(contract);
    }
  }
  std::vector<std::vector<Copy>>& copies() const {
    return emulator_->fibers_[static_cast<size_t>(fiber_)].copies;
  }
  char* shared_of(int rank) const { return emulator_->shared_[static_cast<size_t>(rank)].data(); }

  Emulator* emulator_;
  int fiber_;
};

inline void Emulator::run(int64_t clusters, int ranks, int64_t shared_bytes, const Body& body) {
  body_ = &body;
  clusters_ = clusters;
  ranks_ = ranks;
  const size_t threads = static_cast<size_t>(ranks) * deq::kGpuThreads;
  fibers_.resize(threads);
  exchanges_.resize(threads / deq::kGpuWarp);
  shared_.clear();
  for (int rank = 0; rank < ranks; ++rank) {
    shared_.emplace_back(static_cast<size_t>(shared_bytes));
  }
  for (cluster_ = 0; cluster_ < clusters; ++cluster_) {
    for (SharedMemory& memory : shared_) {
      memory.clear();
    }
    run_cluster();
    if (!failure_.empty()) {
      throw std::runtime_error(failure_);
    }
    for (const SharedMemory& memory : shared_) {
      if (!memory.is_clear()) {
        throw std::runtime_error("the shared memory of a block was written to after it had left");
      }
    }
  }
}

inline void Emulator::prepare(int thread) {
  Fiber& fiber = fibers_[static_cast<size_t>(thread)];
  if (!fiber.stack) {
    fiber.stack.reset(new char[kStackBytes]);
  }
  fiber.notes = StackNotes(fiber.stack.get(), kStackBytes);
  fiber.state = State::kReady;
  fiber.started = false;
  fiber.copies = {{}};
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStackBytes;
  fiber.start.uc_link = nullptr;
  const auto self = reinterpret_cast<uintptr_t>(this);
  makecontext(&fiber.start, reinterpret_cast<void (*)()>(&Emulator::enter), 3,
              static_cast<unsigned>(self >> 32), static_cast<unsigned>(self),
              static_cast<unsigned>(thread));
}

inline void Emulator::run_cluster() {
  const int threads = static_cast<int>(fibers_.size());
  for (int thread = 0; thread < threads; ++thread) {
    prepare(thread);
  }
  bool done = false;
  while (!done && failure_.empty()) {
    bool moved = false;
    if (order_ == Order::kBlockByBlock) {
      for (int block = 0; block < threads; block += deq::kGpuThreads) {
        while (failure_.empty() && run_once(block, deq::kGpuThreads)) {
          moved = true;
        }
      }
    } else {
      moved = run_once(0, threads);
    }
    moved |= release(0, threads, State::kAtCluster);
    done = true;
    for (const Fiber& fiber : fibers_) {
      done = done && fiber.state == State::kDone;
    }
    if (!moved && !done) {
      throw std::runtime_error("some threads wait at a barrier that the others never reach");
    }
  }
}

inline bool Emulator::run_once(int first, int count) {
  bool moved = false;
  for (int i = 0; i < count; ++i) {
    // Interleaved: 37 has no factor in common with a number of threads, so all have their turn.
    const int thread = first + (order_ == Order::kBackwards     ? count - 1 - i
                                : order_ == Order::kInterleaved ? i * 37 % count
                                                                : i);
    if (fibers_[static_cast<size_t>(thread)].state == State::kReady) {
      resume(thread);
      moved = true;
    }
  }
  for (int warp = first; warp < first + count; warp += deq::kGpuWarp) {
    moved |= release(warp, deq::kGpuWarp, State::kAtWarp);
  }
  for (int block = first; block < first + count; block += deq::kGpuThreads) {
    moved |= release(block, deq::kGpuThreads, State::kAtBlock);
  }
  return moved;
}

inline void Emulator::resume(int thread) {
  Fiber& fiber = fibers_[static_cast<size_t>(thread)];
  if (_setjmp(scheduler_) != 0) {
    scheduler_notes_.arrive_from(&fibers_[static_cast<size_t>(thread)].notes);
    return;
  }
  scheduler_notes_.leave_for(fiber.notes);
  if (fiber.started) {
    _longjmp(fiber.place, 1);
  }
  fiber.started = true;
  setcontext(&fiber.start);
}

inline void Emulator::wait(int thread, State state) {
  Fiber& fiber = fibers_[static_cast<size_t>(thread)];
  fiber.state = state;
  if (_setjmp(fiber.place) == 0) {
    fiber.notes.leave_for(scheduler_notes_);
    _longjmp(scheduler_, 1);
  }
  fibers_[static_cast<size_t>(thread)].notes.arrive_from(&scheduler_notes_);
}

inline bool Emulator::release(int first, int count, State state) {
  for (int thread = first; thread < first + count; ++thread) {
    if (fibers_[static_cast<size_t>(thread)].state != state) {
      return false;
    }
  }
  for (int thread = first; thread < first + count; ++thread) {
    fibers_[static_cast<size_t>(thread)].state = State::kReady;
  }
  return true;
}

inline void Emulator::begin_block(int thread) {
  shared_[static_cast<size_t>(thread / deq::kGpuThreads)].begin();
}

inline void Emulator::leave_block(int thread) {
  const int first = thread / deq::kGpuThreads * deq::kGpuThreads;
  for (int other = first; other < first + deq::kGpuThreads; ++other) {
    if (fibers_[static_cast<size_t>(other)].state != State::kDone) {
      return;
    }
  }
  shared_[static_cast<size_t>(thread / deq::kGpuThreads)].leave();
}

inline void Emulator::enter(unsigned high, unsigned low, unsigned thread) {
  auto* const self = reinterpret_cast<Emulator*>(static_cast<uintptr_t>(high) << 32 | low);
  Fiber& fiber = self->fibers_[thread];
  fiber.notes.arrive_from(&self->scheduler_notes_);
  self->begin_block(static_cast<int>(thread));
  try {
    (*self->body_)(Block(self, static_cast<int>(thread)));
  } catch (const std::exception& error) {
    if (self->failure_.empty()) {  // what follows from it is no news
      self->failure_ = error.what();
    }
  }
  fiber.state = State::kDone;
  self->leave_block(static_cast<int>(thread));
  fiber.notes.leave_for(self->scheduler_notes_);
  _longjmp(self->scheduler_, 1);
}

}  // namespace deq_test
