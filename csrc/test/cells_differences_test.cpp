// Products of differences in bfloat16 against plain loops, where the processor has them.
#include "cpu/cells_differences.h"

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

bool same_bits(const bfloat16* a, const bfloat16* b, int64_t count) {
  return std::memcmp(a, b, index(count) * sizeof(bfloat16)) == 0;
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
      loops.multiply(pairs.data(), dim, stride, rows, in.data(), product.data());
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
        loops.multiply(pairs.data(), dim, stride, 1, in.data() + row * stride, alone.data());
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

TEST(differences_extrapolate) {
  if (!supported()) {
    return;
  }
  for (int64_t dim : kDims) {
    const std::vector<float> g = random_rows(2, dim, 10);
    const std::vector<float> last = random_rows(2, dim, 11);
    const std::vector<float> c = random_rows(2, dim, 12);
    const std::vector<float> z = random_rows(2, dim, 13);
    const auto size = static_cast<int64_t>(g.size());
    for (bool scaled : {false, true}) {
      std::vector<float> out = z;  // in place
      std::vector<bfloat16> change(g.size(), bfloat16{7});
      std::vector<bfloat16> expected;
      deq::avx512_bf16::cell_differences().extrapolate(g.data(), last.data(), -1.5f, size,
                                                       scaled ? c.data() : nullptr, out.data(),
                                                       out.data(), change.data());
      for (size_t i = 0; i < g.size(); ++i) {
        CHECK_NEAR(out[i], g[i] + 1.5 * (static_cast<double>(g[i]) - last[i]), 1e-6);
        const float moved = out[i] - z[i];
        expected.push_back(round(scaled ? c[i] * moved : moved));
      }
      CHECK(same_bits(change.data(), expected.data(), size));
    }
  }
}

}  // namespace
#endif
