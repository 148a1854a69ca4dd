// Products of differences in bfloat16 against plain loops, where the processor has them.
#include "cpu/cells/differences.h"

#include <algorithm>
#include <cstring>

#include "test/check.h"

#if defined(__x86_64__)
namespace {

using deq::bfloat16;
using deq::BFloat16Pair;
using deq::kDifferenceColumns;

constexpr int64_t kLanes = 16;
constexpr int64_t kDims[] = {1, 15, 16, 17, 33, 48, 63, 64, 100, 161};

bool supported() { return __builtin_cpu_supports("avx512bf16"); }

int64_t padded(int64_t dim) { return (dim + kLanes - 1) / kLanes * kLanes; }

float widen(bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

bfloat16 round(double value) {
  const float narrowed = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &narrowed, sizeof(bits));
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

size_t index(int64_t i) { return static_cast<size_t>(i); }

// Random rows, zero in the padding.
std::vector<float> random_rows(int64_t rows, int64_t dim, unsigned seed) {
  const std::vector<double> random = deq_test::random_vector(rows * dim, seed);
  std::vector<float> out(index(rows * padded(dim)));
  for (int64_t i = 0; i < rows * dim; ++i) {
    out[index(i / dim * padded(dim) + i % dim)] = static_cast<float>(random[index(i)]);
  }
  return out;
}

std::vector<bfloat16> rounded(const std::vector<float>& values) {
  std::vector<bfloat16> out;
  for (float value : values) {
    out.push_back(round(value));
  }
  return out;
}

TEST(differences_multiply) {
  if (!supported()) {
    return;
  }
  const deq::CellDifferences& loops = deq::avx512_bf16::cell_differences();
  for (int64_t dim : kDims) {
    const int64_t stride = padded(dim);
    const std::vector<double> weight = deq_test::random_vector(dim * dim, 1);
    std::vector<float> packed(index(dim * stride));
    for (int64_t column = 0; column < dim; ++column) {
      const int64_t begin = column / kDifferenceColumns * kDifferenceColumns;
      const int64_t width = std::min(kDifferenceColumns, stride - begin);
      for (int64_t k = 0; k < dim; ++k) {
        packed[index(begin * dim + k * width + column - begin)] =
            static_cast<float>(weight[index(column * dim + k)]);
      }
    }
    std::vector<BFloat16Pair> pairs(index(deq::difference_pairs(dim) * stride));
    loops.pack(packed.data(), dim, stride, pairs.data());
    for (int64_t rows : {1, 2, 5, 6, 7, 11, 13, 23}) {
      const std::vector<bfloat16> in = rounded(random_rows(rows, dim, 2));
      std::vector<float> product(in.size(), 7.0f);
      // To ask for rows changes nothing.
      const int64_t bytes = stride * static_cast<int64_t>(sizeof(bfloat16));
      const deq::CellAhead ahead = {{in.data(), nullptr, in.data()}, {bytes, 0, bytes}};
      loops.multiply(pairs.data(), dim, stride, rows, in.data(), product.data(), ahead);
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t column = 0; column < stride; ++column) {
          double expected = 0.0;
          for (int64_t k = 0; column < dim && k < dim; ++k) {
            expected += static_cast<double>(widen(round(weight[index(column * dim + k)]))) *
                        widen(in[index(row * stride + k)]);
          }
          CHECK_NEAR(product[index(row * stride + column)], expected, 1e-5);
        }
        // A row by itself has the same bits as among others.
        std::vector<float> alone(index(stride));
        loops.multiply(pairs.data(), dim, stride, 1, in.data() + row * stride, alone.data(), {});
        CHECK(std::memcmp(alone.data(), product.data() + row * stride,
                          index(stride) * sizeof(float)) == 0);
      }
    }
  }
}

TEST(differences_gather) {
  if (!supported()) {
    return;
  }
  // Row 0 has no entry, row 1 the same twice, row 2 itself and its neighbours.
  const std::vector<int64_t> crow = {4, 4, 6, 9};
  const std::vector<int64_t> col = {-1, -1, -1, -1, 12, 12, 12, 11, 10};
  const std::vector<float> values = {9, 9, 9, 9, 0.5f, -2, 1, 3, 0.25f};
  for (int64_t dim : kDims) {
    const int64_t stride = padded(dim);
    const std::vector<bfloat16> y = rounded(random_rows(3, dim, 4));
    std::vector<bfloat16> out(y.size(), bfloat16{7});
    deq::avx512_bf16::cell_differences().gather(crow.data(), col.data(), values.data(), 10,
                                                y.data(), stride, 3, out.data());
    for (int64_t i = 0; i < stride; ++i) {
      const auto at = [&](int64_t row) {
        return static_cast<double>(widen(y[index(row * stride + i)]));
      };
      CHECK(widen(out[index(i)]) == 0.0f);
      CHECK_NEAR(widen(out[index(stride + i)]), -1.5 * at(2), 0x1p-8);
      CHECK_NEAR(widen(out[index(2 * stride + i)]), at(2) + 3 * at(1) + 0.25 * at(0), 0x1p-8);
    }
  }
}

TEST(differences_finish) {
  if (!supported()) {
    return;
  }
  const int64_t rows = 3;
  for (int64_t dim : kDims) {
    for (bool fresh : {false, true}) {
      const std::vector<float> product = random_rows(rows, dim, 6);
      const std::vector<float> z = random_rows(rows, dim, 7);
      const std::vector<float> combined = random_rows(rows, dim, 8);
      const std::vector<bfloat16> drift = rounded(random_rows(rows, dim, 9));
      const std::vector<float> base = random_rows(rows, dim, 10);
      std::vector<float> sum = base;
      std::vector<float> kept = combined;
      std::vector<bfloat16> gap(z.size(), bfloat16{7});
      const float unit = 2.0f;
      double sums[deq::kCellSums];
      deq::CellFinish<float, bfloat16> finish = {};
      finish.activation = deq::Activation::kTanh;
      finish.norm = deq::NormKind::kTwo;
      finish.damping = 0.5f;
      finish.dim = dim;
      finish.stride = padded(dim);
      finish.rows = rows;
      finish.z = z.data();
      finish.product = product.data();
      finish.base = finish.sum = sum.data();
      finish.gap = gap.data();
      finish.combined = kept.data();
      finish.drift = drift.data();
      finish.units = &unit;
      finish.fresh = &fresh;
      finish.sums = sums;
      deq::avx512_bf16::cell_differences().finish(finish);
      double expected[deq::kCellSums] = {};
      for (size_t i = 0; i < z.size(); ++i) {
        CHECK(sum[i] == base[i] + product[i]);
        const double f = std::tanh(static_cast<double>(sum[i]));
        const double r = f - z[i];
        const double o = fresh ? r : combined[i];
        CHECK_NEAR(kept[i], o, 1e-6);
        CHECK_NEAR(widen(gap[i]), o - r, 0x1p-8 * std::fabs(o - r) + 1e-6);
        const double u = unit * (o - r);
        const double v = unit * widen(drift[i]);
        expected[deq::kResidualNorm] += r * r;
        expected[deq::kValueNorm] += f * f;
        expected[deq::kSquareU] += u * u;
        expected[deq::kProductUV] += u * v;
        expected[deq::kSquareV] += v * v;
        expected[deq::kProductUR] += u * unit * r;
      }
      for (int64_t i = 0; i < deq::kCellSums; ++i) {
        CHECK_NEAR(sums[i], expected[i], 1e-3);
      }
    }
  }
}

TEST(differences_advance) {
  if (!supported()) {
    return;
  }
  for (int64_t dim : kDims) {
    const std::vector<float> z = random_rows(2, dim, 10);
    const std::vector<float> c = random_rows(2, dim, 11);
    const std::vector<float> combined = random_rows(2, dim, 12);
    const std::vector<bfloat16> moved = rounded(random_rows(2, dim, 13));
    const std::vector<bfloat16> gap = rounded(random_rows(2, dim, 14));
    const std::vector<bfloat16> drift = rounded(random_rows(2, dim, 15));
    for (bool scaled : {false, true}) {
      for (bool exact : {false, true}) {
        std::vector<float> next_z = z;
        std::vector<float> next_combined = combined;
        std::vector<bfloat16> next_moved = moved;
        std::vector<bfloat16> next_drift = drift;
        std::vector<float> scaled_z(z.size(), 7.0f);
        std::vector<bfloat16> change(z.size(), bfloat16{7});
        deq::CellStep<float, bfloat16> step = {};
        step.length = 0.75f;
        step.share = 0.5f;
        step.momentum = -1.5f;
        step.size = static_cast<int64_t>(z.size());
        step.gap = gap.data();
        step.z = step.next_z = next_z.data();
        step.combined = step.next_combined = next_combined.data();
        step.drift = step.next_drift = next_drift.data();
        step.moved = step.next_moved = next_moved.data();
        step.scale = scaled ? c.data() : nullptr;
        const deq::CellDifferences& loops = deq::avx512_bf16::cell_differences();
        if (exact) {
          loops.advance(step, scaled ? scaled_z.data() : nullptr);
        } else {
          loops.advance_change(step, scaled ? change.data() : nullptr);
        }
        for (size_t i = 0; i < z.size(); ++i) {
          const double r = static_cast<double>(combined[i]) - widen(gap[i]);
          const double o = r + 0.5 * widen(gap[i]) - 1.5 * widen(drift[i]);
          CHECK_NEAR(widen(next_moved[i]), 0.75 * r + 1.5 * widen(moved[i]), 0x1p-6);
          // The iterate moves by what is kept of its move.
          CHECK(next_z[i] == z[i] + widen(next_moved[i]));
          CHECK_NEAR(next_combined[i], o, 2e-6);
          CHECK_NEAR(widen(next_drift[i]), combined[i] - o, 0x1p-6);
          CHECK(scaled_z[i] == (scaled && exact ? c[i] * next_z[i] : 7.0f));
          CHECK(change[i].bits ==
                (scaled && !exact ? round(c[i] * widen(next_moved[i])) : bfloat16{7}).bits);
        }
      }
    }
  }
}

}  // namespace
#endif
