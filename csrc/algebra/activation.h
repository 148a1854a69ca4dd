// The activations of structured cells; deq_kernels/ops/cells/activations.py numbers the same.
#pragma once

#include <cstdint>

namespace deq {

enum class Activation : int64_t { kIdentity, kRelu, kTanh, kSigmoid, kElu, kSoftplus, kGelu };

constexpr int64_t kActivations = 7;

// The norm that a structured cell is judged by; deq_kernels/ops/cells/op.py numbers the same.
enum class NormKind : int64_t { kTwo, kMax };

}  // namespace deq
