// The ops of the CUDA library as they are called, with their launches and the memory that they make
// for themselves; compiled for the host against csrc/test/gpu_runtime.
#include "cuda/broyden.cu"
#include "cuda/cells/cells.cu"
#include "cuda/damped.cu"
#include "cuda/gmres.cu"
#include "cuda/low_rank.cu"
#include "cuda/low_rank_halves.cu"
#include "cuda/regime.cu"
#include "test/check.h"
#include "test/gpu_arrays.h"

namespace {

using deq::Tensor;
using torch::headeronly::ScalarType;
using torch::stable::Memory;

template <typename T>
std::vector<T> values_of(const Tensor& t) {
  const T* const values = deq::data<T>(t);
  return std::vector<T>(values, values + t.numel());
}

template <typename T>
Tensor tensor_of(const std::vector<T>& values, std::vector<int64_t> sizes, ScalarType dtype) {
  Tensor t(std::move(sizes), dtype);
  CHECK(t.numel() == static_cast<int64_t>(values.size()));
  std::copy(values.begin(), values.end(), deq::data<T>(t));
  return t;
}

Tensor random_doubles(std::vector<int64_t> sizes, unsigned seed) {
  int64_t elements = 1;
  for (int64_t size : sizes) {
    elements *= size;
  }
  return tensor_of(deq_test::random_vector(elements, seed), std::move(sizes), ScalarType::Double);
}

// Runs `op` in every regime. Its results are the same in all of them, and no kernel writes to
// memory that the op had let go of before the launch.
template <typename Op>
void in_every_regime(const Op& op) {
  std::vector<double> first;
  for (const char* regime : deq_test::kRegimes) {
    CHECK(deq_kernels_force_regime(regime) == 0);
    const std::vector<double> results = op();
    CHECK(Memory::freed_is_untouched());
    for (double x : results) {
      CHECK(std::isfinite(x));
    }
    first = first.empty() ? results : first;
    CHECK(!first.empty() && deq_test::same_bits(results, first));
  }
  CHECK(deq_kernels_force_regime("") == 0);
}

TEST(gpu_library_neumann_step) {
  in_every_regime([] {
    const Tensor w = random_doubles({2, 4500}, 1);
    const Tensor norms({2, 2}, ScalarType::Double);
    deq::neumann_step(random_doubles({2, 4500}, 2), random_doubles({2, 4500}, 3), w, norms, 0.5);
    std::vector<double> results = values_of<double>(w);
    for (double norm : values_of<double>(norms)) {
      results.push_back(norm);
    }
    return results;
  });
}

TEST(gpu_library_low_rank) {
  in_every_regime([] {
    const Tensor u = random_doubles({2, 3, 4500}, 9);
    const Tensor v = random_doubles({2, 3, 4500}, 10);
    const Tensor rank = tensor_of<int64_t>({2, 1}, {2}, ScalarType::Long);
    const Tensor appended = deq::low_rank_append(u, v, rank, random_doubles({2, 4500}, 11),
                                                 random_doubles({2, 4500}, 12), -1.0);
    CHECK(values_of<bool>(appended) == std::vector<bool>({true, true}));
    return values_of<double>(
        deq::low_rank_matvec(u, v, rank, random_doubles({2, 2, 4500}, 13), -1.0));
  });
}

TEST(gpu_library_broyden_matvec) {
  in_every_regime([] {
    const Tensor rank = tensor_of<int64_t>({1, 2}, {2}, ScalarType::Long);
    return values_of<double>(
        deq::broyden_matvec(random_doubles({2, 4, 4500}, 14), random_doubles({2, 4, 6}, 15), rank,
                            random_doubles({2, 3, 4500}, 16), -1.0, /*transpose=*/false));
  });
}

TEST(gpu_library_project_out) {
  in_every_regime([] {
    const Tensor x = random_doubles({2, 3, 4500}, 4);
    const Tensor count = tensor_of<int64_t>({2, 1}, {2}, ScalarType::Long);
    const Tensor dots = deq::low_rank_project_out(random_doubles({2, 2, 4500}, 5), count, x);
    std::vector<double> results = values_of<double>(x);
    for (double dot : values_of<double>(dots)) {
      results.push_back(dot);
    }
    return results;
  });
}

// f(z) is the same in all evaluations: the images are those of the identity.
TEST(gpu_library_gmres_step) {
  in_every_regime([] {
    constexpr int64_t kDim = 4500;
    constexpr int64_t kColumns = 2;
    constexpr int64_t kSteps = 4;
    const Tensor f_z = random_doubles({2, kDim}, 17);
    const Tensor z = random_doubles({2, kDim}, 18);
    const Tensor best_z = random_doubles({2, kDim}, 19);
    const Tensor record({2, deq::kNormColumns + kSteps}, ScalarType::Double);
    const Tensor counters({2, deq::kCounterColumns}, ScalarType::Long);
    const Tensor active = tensor_of<int64_t>({2}, {1}, ScalarType::Long);
    const Tensor basis({2, kColumns + 1, kDim}, ScalarType::Double);
    const Tensor start({2, kDim}, ScalarType::Double);
    const Tensor start_residual({2, kDim}, ScalarType::Double);
    const Tensor algebra({2, deq::GmresTable::table_size(kColumns)}, ScalarType::Double);
    const int64_t tiles = deq::gpu_tiles(kDim);
    const Tensor scratch({2, tiles + 1, deq::GmresSums::kDots + kColumns}, ScalarType::Double);
    for (int step = 0; step < 3; ++step) {
      deq::gmres_step(f_z, z, best_z, basis, start, start_residual, algebra, record, counters,
                      active, scratch, /*rtol=*/1e-6, /*atol=*/0.0, /*stall_steps=*/0,
                      /*divergence_factor=*/1e6);
    }
    CHECK(values_of<int64_t>(active)[0] == 0);
    CHECK(deq_test::near(values_of<double>(best_z), values_of<double>(f_z), 1e-12));
    return values_of<double>(best_z);
  });
}

// Two graphs, without edges but the loops; one too large for a block of a grid alone.
TEST(gpu_library_cells) {
  in_every_regime([] {
    constexpr int64_t kRows = 90;
    constexpr int64_t kDim = 5;
    constexpr int64_t kSteps = 3;
    std::vector<int64_t> crow;
    std::vector<int64_t> col;
    for (int64_t row = 0; row <= kRows; ++row) {
      crow.push_back(row);
      if (row < kRows) {
        col.push_back(row);
      }
    }
    std::vector<double> weight(kDim * kDim, 0.1);
    const Tensor z = random_doubles({kRows, kDim}, 6);
    const Tensor record({2, deq::kNormColumns + kSteps}, ScalarType::Double);
    const Tensor active = tensor_of<int64_t>({2}, {1}, ScalarType::Long);
    deq::cells_iterate(tensor_of(weight, {kDim, kDim}, ScalarType::Double),
                       tensor_of(crow, {kRows + 1}, ScalarType::Long),
                       tensor_of(col, {kRows}, ScalarType::Long), random_doubles({kRows}, 7),
                       tensor_of<int64_t>({0, 20, kRows}, {3}, ScalarType::Long),
                       random_doubles({kRows, kDim}, 8), std::nullopt, z, record,
                       Tensor({2, deq::kCounterColumns}, ScalarType::Long), active,
                       /*activation=*/0, /*rtol=*/0.0, /*atol=*/0.0, /*damping=*/1.0, /*norm=*/0,
                       /*stall_steps=*/0, /*divergence_factor=*/1e6, /*fixed_steps=*/false,
                       /*accelerate=*/false);
    CHECK(values_of<int64_t>(active)[0] == 0);
    return values_of<double>(z);
  });
}

}  // namespace
