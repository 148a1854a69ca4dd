// The block that kernels run in, in place of that of a GPU.
#pragma once

#include <cuda_runtime.h>

namespace deq {

struct DeviceBlock : deq_test::Emulator::Block {
  // Before anything is waited for: another block may be the running one afterwards.
  DeviceBlock() : deq_test::Emulator::Block(*deq_test::running_block()) {}
};

}  // namespace deq
