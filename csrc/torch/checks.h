// Argument checks shared by the ops. All run before any parallel region: an error thrown inside
// one would lose its message.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "algebra/types.h"

namespace deq {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_shape(const Tensor& t, const char* name, std::initializer_list<int64_t> shape) {
  const auto sizes = t.sizes();
  STD_TORCH_CHECK(sizes.size() == shape.size(), name, " must have ", shape.size(),
                  " dimensions, got ", sizes.size());
  size_t i = 0;
  for (int64_t size : shape) {
    STD_TORCH_CHECK(sizes[i] == size, name, " must have size ", size, " in dimension ", i, ", got ",
                    sizes[i]);
    ++i;
  }
}

inline void check_dtype(const Tensor& t, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, " must have dtype number ",
                  static_cast<int>(dtype), " (torch.headeronly ScalarType), got ",
                  static_cast<int>(t.scalar_type()));
}

inline void check_contiguous(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_contiguous(), name, " must be contiguous; pass ", name, ".contiguous()");
}

// A matrix or stack of matrices whose last dimension is dense; other strides are free. Without
// elements any strides will do, and contiguous() changes none.
inline void check_dense_rows(const Tensor& t, const char* name) {
  const int64_t last = t.dim() - 1;
  STD_TORCH_CHECK(t.size(last) <= 1 || t.stride(last) == 1 || t.numel() == 0, name,
                  " must be dense in its last dimension; pass ", name, ".contiguous()");
}

// A small table that an op reads and writes in place.
inline void check_table(const Tensor& t, const char* name, ScalarType dtype,
                        std::initializer_list<int64_t> shape) {
  check_shape(t, name, shape);
  check_dtype(t, name, dtype);
  check_contiguous(t, name);
}

// How many rows a history may have: kernels count them in 32 bits.
constexpr int64_t kMostRows = (int64_t(1) << 31) - 1;

// How many elements it may have, expanded ones included: the bytes of several passes are counted in
// 64 bits.
constexpr int64_t kMostElements = int64_t(1) << 56;

// Stored rows [batch, rows, dim], dense.
inline void check_rows(const Tensor& t, const char* name, std::initializer_list<int64_t> shape) {
  check_shape(t, name, shape);
  check_dense_rows(t, name);
  STD_TORCH_CHECK(t.size(1) <= kMostRows && t.numel() <= kMostElements, name, " must have at most ",
                  kMostRows, " rows and ", kMostElements, " elements, got ", t.size(1), " and ",
                  t.numel());
}

inline void check_finite(double value, const char* name) {
  STD_TORCH_CHECK(std::isfinite(value), name, " must be finite, got ", value);
}

inline void check_not_negative(double value, const char* name) {
  STD_TORCH_CHECK(std::isfinite(value) && value >= 0.0, name,
                  " must be finite and at least 0, got ", value);
}

inline void check_count(int64_t value, const char* name) {
  STD_TORCH_CHECK(value >= 0, name, " must be at least 0, got ", value);
}

struct NamedTensor {
  const char* name;
  const Tensor* tensor;
};

// One argument on a device sends the whole call there; the others must be there too.
inline void check_same_device(const char* name, const Tensor& t,
                              std::initializer_list<NamedTensor> others) {
  for (const NamedTensor& other : others) {
    STD_TORCH_CHECK(other.tensor->is_cuda() == t.is_cuda() &&
                        other.tensor->get_device_index() == t.get_device_index(),
                    other.name, " must be on the same device as ", name,
                    ", but is not; move it with .to(", name, ".device)");
  }
}

template <typename T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

// Calls fn with a value of the storage type.
template <typename Fn>
void with_state_type(ScalarType dtype, const char* name, const Fn& fn) {
  switch (dtype) {
    case ScalarType::Double:
      return fn(double());
    case ScalarType::Float:
      return fn(float());
    case ScalarType::Half:
      return fn(float16());
    case ScalarType::BFloat16:
      return fn(bfloat16());
    default:
      STD_TORCH_CHECK(false, name,
                      " must be float64, float32, float16 or bfloat16, got dtype number ",
                      static_cast<int>(dtype));
  }
}

// Calls fn with a state value and a history value: the state's own type, bfloat16, or float32.
template <typename Fn>
void with_state_and_history_type(ScalarType state, ScalarType history, const Fn& fn) {
  with_state_type(state, "the state", [&](auto state_value) {
    if (history == state) {
      return fn(state_value, state_value);
    }
    if (history == ScalarType::BFloat16) {
      return fn(state_value, bfloat16());
    }
    STD_TORCH_CHECK(
        history == ScalarType::Float,
        "the history must have the state's dtype, bfloat16 or float32, got dtype number ",
        static_cast<int>(history));
    fn(state_value, float());
  });
}

}  // namespace deq
