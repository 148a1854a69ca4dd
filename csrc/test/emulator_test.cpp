// The emulator finds the defects that it is there to find, each planted in a kernel of a few lines.
#include "test/emulator.h"

#include <cmath>

#include "cuda/tile.h"
#include "test/check.h"

namespace {

using deq_test::Emulator;
using deq_test::Order;
using Block = Emulator::Block;

constexpr Order kOrders[] = {Order::kForwards, Order::kBackwards, Order::kInterleaved,
                             Order::kBlockByBlock};
constexpr int64_t kShared = 256 * 16;

// What the emulator says of a kernel; "" where it finds nothing.
template <typename Body>
std::string said_of(int ranks, const Body& body, Order order = Order::kForwards) {
  try {
    Emulator(order).run(2, ranks, kShared, body);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

bool says(const std::string& said, const char* words) {
  return said.find(words) != std::string::npos;
}

TEST(emulator_finds_packs_that_are_not_aligned) {
  using Pack = deq::Pack<float, 4>;
  static_assert(sizeof(Pack) == 16, "needs 16 bytes");
  auto moved = [](int64_t past) {
    return said_of(1, [=](const Block& block) {
      // The last thread has no room past its place.
      char* const place = block.shared() + (block.thread() % 255) * 16 + past;
      deq::store_pack(Pack{}, place);
      deq::load_pack<Pack>(place);
    });
  };
  CHECK(moved(0).empty());
  CHECK(says(moved(4), "aligned to its width"));
  CHECK(says(moved(8), "aligned to its width"));
}

TEST(emulator_finds_copies_that_are_not_aligned) {
  alignas(16) const float from[8] = {};
  auto copied = [&](int64_t past_from, int64_t past_to) {
    return said_of(1, [&](const Block& block) {
      block.copy_async(from + past_from, block.shared() + (block.thread() % 255) * 16 + past_to);
      block.commit_copies();
      block.wait_for_copies(0);
    });
  };
  CHECK(copied(0, 0).empty());
  CHECK(copied(4, 0).empty());
  CHECK(says(copied(2, 0), "aligned to 16 bytes"));
  CHECK(says(copied(0, 8), "aligned to 16 bytes"));
}

TEST(emulator_aligns_shared_memory_to_no_more_than_a_gpu_does) {
  CHECK(said_of(2, [](const Block& block) {
          const auto address = reinterpret_cast<uintptr_t>(block.shared());
          block.check(address % 32 == 16, "chance must not help");
        }).empty());
}

// Every block leaves its rank for the next one, which reads it; `meets` says at which barriers.
std::string read_next(bool meets_before, bool meets_after, bool keeps_pointer, Order order) {
  return said_of(
      2,
      [=](const Block& block) {
        auto* const mine = reinterpret_cast<double*>(block.shared());
        if (block.thread() == 0) {
          *mine = block.rank();
        }
        if (meets_before) {
          block.sync_cluster();
        }
        const int next = (block.rank() + 1) % block.ranks();
        const double* const there = block.of_rank(mine, next);
        if (keeps_pointer) {
          block.sync_cluster();
          // The second block waits for itself alone, which says nothing of the other.
          for (int i = 0; i < 4 * block.rank(); ++i) {
            block.sync();
          }
        }
        block.check(*there == next, "read something else");
        if (meets_after) {
          block.sync_cluster();
        }
      },
      order);
}

TEST(emulator_finds_reads_of_a_block_that_is_not_there) {
  for (Order order : kOrders) {
    CHECK(read_next(true, true, false, order).empty());
    CHECK(says(read_next(false, true, false, order), "once it has begun"));
    CHECK(says(read_next(true, false, true, order), "read something else"));
  }
  // The first block has left before the second one goes on.
  CHECK(says(read_next(true, false, false, Order::kBlockByBlock), "once it has left"));
}

TEST(emulator_finds_writes_to_a_block_that_has_left) {
  CHECK(says(said_of(2,
                     [](const Block& block) {
                       auto* const mine = reinterpret_cast<double*>(block.shared());
                       block.sync_cluster();
                       double* const there =
                           const_cast<double*>(block.of_rank(mine, 1 - block.rank()));
                       block.sync_cluster();
                       for (int i = 0; i < 4 * block.rank(); ++i) {
                         block.sync();
                       }
                       there[block.thread()] = 1.0;
                     }),
             "written to after it had left"));
}

TEST(copies_are_waited_for_no_longer_than_asked) {
  for (int pending = 0; pending <= 70; ++pending) {
    int constant = -1;
    deq::wait_with_constant(pending, [&](auto n) { constant = n.value; });
    CHECK(constant == (pending < deq::kMostPending ? pending : deq::kMostPending));
  }
  const float from[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  alignas(16) float aligned[4];
  std::copy(from, from + 4, aligned);
  CHECK(said_of(1, [&](const Block& block) {
          auto landed = [&](int group) {
            return !std::isnan(reinterpret_cast<float*>(block.shared() + 16 * group)[3]);
          };
          if (block.thread() != 0) {
            return;
          }
          constexpr int kGroups = 12;
          for (int group = 0; group < kGroups; ++group) {
            block.copy_async(aligned, block.shared() + 16 * group);
            block.commit_copies();
          }
          for (int group = 0; group < kGroups; ++group) {
            block.wait_for_copies(kGroups - 1 - group);
            block.check(landed(group), "what was waited for has landed");
            block.check(group + 1 == kGroups || !landed(group + 1), "and nothing else");
          }
        }).empty());
}

}  // namespace
