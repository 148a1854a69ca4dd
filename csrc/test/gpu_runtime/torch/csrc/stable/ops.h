#pragma once

#include "torch/csrc/stable/tensor.h"

namespace torch {
namespace stable {

inline Tensor empty_like(const Tensor& like) { return Tensor(like.sizes(), like.scalar_type()); }
inline Tensor new_empty(const Tensor&, std::vector<int64_t> sizes, headeronly::ScalarType dtype) {
  return Tensor(std::move(sizes), dtype);
}

}  // namespace stable
}  // namespace torch
