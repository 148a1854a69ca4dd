// The vectorised tile loops of every instruction set this machine has, against plain loops.
#include "cpu/tiles.h"

#include <algorithm>
#include <cstring>

#include "test/check.h"

namespace {

constexpr int64_t kSizes[] = {1, 3, 8, 15, 16, 17, 100, 4095, 4096};

struct alignas(64) Buffer {
  double bytes[deq::kTile + 16];
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(bytes);
  }
};

float from_bfloat16(deq::bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}

template <typename accum_t>
void check_state(const deq::StateTiles<accum_t>& tiles, double tolerance) {
  for (int64_t n : kSizes) {
    const std::vector<double> random = deq_test::random_vector(3 * n, 1);
    std::vector<accum_t> f(random.begin(), random.begin() + n);
    std::vector<accum_t> z(random.begin() + n, random.begin() + 2 * n);
    Buffer r_buffer;
    Buffer f_buffer;
    accum_t* r = r_buffer.as<accum_t>();
    double residual_sq;
    double f_sq;
    tiles.residual_norms(f.data(), z.data(), n, r, f_buffer.as<accum_t>(), &residual_sq, &f_sq);
    double expected_residual_sq = 0.0;
    double expected_f_sq = 0.0;
    for (int64_t i = 0; i < n; ++i) {
      CHECK(r[i] == f[i] - z[i]);
      expected_residual_sq += static_cast<double>(r[i]) * r[i];
      expected_f_sq += static_cast<double>(f[i]) * f[i];
    }
    CHECK_NEAR(residual_sq, expected_residual_sq, 1e-13);
    CHECK_NEAR(f_sq, expected_f_sq, 1e-13);

    std::vector<accum_t> moved = z;
    tiles.advance(r, accum_t(0.5), n, moved.data());
    std::vector<accum_t> relaxed = z;
    tiles.relax(f.data(), accum_t(0.5), n, relaxed.data());
    for (int64_t i = 0; i < n; ++i) {
      CHECK_NEAR(moved[i], z[i] + 0.5 * r[i], tolerance);
      CHECK_NEAR(relaxed[i], z[i] + 0.5 * r[i], tolerance);
    }

    std::vector<accum_t> w = z;
    const std::vector<accum_t> l(random.begin() + 2 * n, random.end());
    double change_sq;
    double norm_sq;
    tiles.neumann(f.data(), l.data(), accum_t(0.25), n, w.data(), r, f_buffer.as<accum_t>(),
                  &change_sq, &norm_sq);
    double expected_change_sq = 0.0;
    double expected_norm_sq = 0.0;
    for (int64_t i = 0; i < n; ++i) {
      const double expected = 0.25 * (l[i] + f[i]) + 0.75 * z[i];
      CHECK_NEAR(w[i], expected, 4 * tolerance);
      expected_change_sq += (expected - z[i]) * (expected - z[i]);
      expected_norm_sq += expected * expected;
    }
    CHECK_NEAR(change_sq, expected_change_sq, 100 * tolerance);
    CHECK_NEAR(norm_sq, expected_norm_sq, 100 * tolerance);
  }
}

void check_history(const deq::HistoryTiles<float, float>& tiles) {
  const int64_t count = 7;
  for (int64_t n : kSizes) {
    const int64_t stride = n + 5;
    const std::vector<double> random = deq_test::random_vector(count * stride, 2);
    const std::vector<float> rows(random.begin(), random.end());
    const std::vector<double> random_x = deq_test::random_vector(2 * n, 3);
    Buffer x_buffer = {};
    Buffer y_buffer = {};
    float* x = x_buffer.as<float>();
    float* y = y_buffer.as<float>();
    for (int64_t i = 0; i < n; ++i) {
      x[i] = static_cast<float>(random_x[i]);
      y[i] = static_cast<float>(random_x[n + i]);
    }
    double single[count];
    double first[count];
    double second[count];
    tiles.dots(rows.data(), stride, count, x, n, single);
    tiles.dots_pair(rows.data(), stride, count, x, y, n, first, second);
    for (int64_t j = 0; j < count; ++j) {
      double with_x = 0.0;
      double with_y = 0.0;
      for (int64_t i = 0; i < n; ++i) {
        with_x += static_cast<double>(rows[j * stride + i]) * x[i];
        with_y += static_cast<double>(rows[j * stride + i]) * y[i];
      }
      CHECK_NEAR(single[j], with_x, 3e-5);
      CHECK_NEAR(first[j], with_x, 3e-5);
      CHECK_NEAR(second[j], with_y, 3e-5);
    }
    const double coefficients[count] = {1.0, -2.0, 0.5, 0.25, 3.0, -1.0, 0.125};
    for (int64_t used : {int64_t(0), int64_t(1), int64_t(4), count}) {
      Buffer sum_buffer = x_buffer;
      float* sum = sum_buffer.as<float>();
      tiles.combine(rows.data(), stride, used, coefficients, -0.5, n, sum);
      for (int64_t i = 0; i < n; ++i) {
        double expected = -0.5 * x[i];
        for (int64_t j = 0; j < used; ++j) {
          expected += coefficients[j] * rows[j * stride + i];
        }
        CHECK_NEAR(sum[i], expected, 1e-5);
      }
    }
  }
}

// Rounding to storage: values whose neighbours and ties are known.
template <typename accum_t>
void check_rounding(const deq::HistoryTiles<deq::bfloat16, accum_t>& bfloat,
                    const deq::HistoryTiles<deq::float16, accum_t>& half) {
  Buffer buffer = {};
  accum_t* values = buffer.as<accum_t>();
  const float inputs[] = {1.0f,
                          1.0f + 0x1p-8f,    // a tie in bfloat16, to even: 1
                          1.0f + 0x1.8p-7f,  // a tie in bfloat16, to even: 1 + 2^-6
                          -3.1415927f,
                          0x1p-130f,  // subnormal in both
                          HUGE_VALF,
                          70000.0f,          // infinite in float16
                          1.0f + 0x1p-11f};  // a tie in float16, to even: 1
  const float as_bfloat[] = {1.0f,      1.0f,      1.0f + 0x1p-6f, -3.140625f,
                             0x1p-130f, HUGE_VALF, 70144.0f,       1.0f};
  const float as_half[] = {1.0f, 1.0f + 0x1p-8f, 1.0f + 0x1.8p-7f, -3.140625f,
                           0.0f, HUGE_VALF,      HUGE_VALF,        1.0f};
  deq::bfloat16 bfloat_row[8];
  deq::float16 half_row[8];
  std::copy_n(inputs, 8, values);
  bfloat.store_rounded(values, 8, bfloat_row);
  for (int i = 0; i < 8; ++i) {
    CHECK(values[i] == as_bfloat[i]);
    CHECK(from_bfloat16(bfloat_row[i]) == as_bfloat[i]);
  }
  std::copy_n(inputs, 8, values);
  half.store_rounded(values, 8, half_row);
  Buffer reloaded = {};
  half.load(half_row, 8, reloaded.as<accum_t>());
  for (int i = 0; i < 8; ++i) {
    CHECK(values[i] == as_half[i]);
    CHECK(reloaded.as<accum_t>()[i] == as_half[i]);
  }
  values[0] = NAN;
  bfloat.store_rounded(values, 1, bfloat_row);
  CHECK(std::isnan(values[0]));
  values[0] = NAN;
  half.store_rounded(values, 1, half_row);
  CHECK(std::isnan(values[0]));
}

// Values just above a tie: rounded to float first, they would be ties, and go down.
void check_single_rounding(const deq::HistoryTiles<deq::bfloat16, double>& bfloat,
                           const deq::HistoryTiles<deq::float16, double>& half) {
  Buffer buffer = {};
  double* values = buffer.as<double>();
  deq::bfloat16 bfloat_row[1];
  deq::float16 half_row[1];
  for (double sign : {1.0, -1.0}) {
    values[0] = sign * (1.0 + 0x1p-8 + 0x1p-40);
    bfloat.store_rounded(values, 1, bfloat_row);
    CHECK(values[0] == sign * (1.0 + 0x1p-7));
    values[0] = sign * (1.0 + 0x1p-11 + 0x1p-40);
    half.store_rounded(values, 1, half_row);
    CHECK(values[0] == sign * (1.0 + 0x1p-10));
  }
}

#define TEST_ISA(isa)                                                     \
  check_state(deq::isa::state_tiles<double>(), 1e-14);                    \
  check_state(deq::isa::state_tiles<float>(), 1e-6);                      \
  check_history(deq::isa::history_tiles<float, float>());                 \
  check_rounding(deq::isa::history_tiles<deq::bfloat16, float>(),         \
                 deq::isa::history_tiles<deq::float16, float>());         \
  check_rounding(deq::isa::history_tiles<deq::bfloat16, double>(),        \
                 deq::isa::history_tiles<deq::float16, double>());        \
  check_single_rounding(deq::isa::history_tiles<deq::bfloat16, double>(), \
                        deq::isa::history_tiles<deq::float16, double>())

TEST(tiles_baseline) { TEST_ISA(baseline); }

#if defined(__x86_64__)
TEST(tiles_avx2) {
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    TEST_ISA(avx2);
  }
}

TEST(tiles_avx512) {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    TEST_ISA(avx512);
  }
}
#endif

}  // namespace
