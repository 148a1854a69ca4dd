// The activations of structured cells; deq_kernels/ops/cells/activations.py numbers the same.
#pragma once

#include <cstdint>

namespace deq {

enum class Activation : int64_t { kIdentity, kRelu, kTanh, kSigmoid, kElu, kSoftplus, kGelu };

constexpr int64_t kActivations = 7;

// The norm that a structured cell is judged by; deq_kernels/ops/cells/norms.py numbers the same. By
// rows, a sample's norm is the largest 2-norm of a row, and each row has to meet the tolerance for
// itself; where each row is a sample that is the 2-norm.
enum class NormKind : int64_t { kTwo, kMax, kRows };

constexpr int64_t kNormKinds = 3;

}  // namespace deq
