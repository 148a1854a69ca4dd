// Tells AddressSanitizer, where the build has it, which stack runs: it has to know when a program
// goes from one to another by itself.
#pragma once

#include <cstddef>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace deq_test {

class StackNotes {
 public:
  // A stack of our own; without arguments the one that the program began on.
  explicit StackNotes(const void* bottom = nullptr, size_t size = 0)
      : bottom_(bottom), size_(size) {}

  // Right before going from this stack to another.
  void leave_for(const StackNotes& other) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&state_, other.bottom_, other.size_);
#else
    static_cast<void>(other);
#endif
  }

  // The first thing on this stack; `from` is the one that was left.
  void arrive_from(StackNotes* from) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(state_, &from->bottom_, &from->size_);
#else
    static_cast<void>(from);
#endif
  }

 private:
  const void* bottom_;
  size_t size_;
#ifdef __SANITIZE_ADDRESS__
  void* state_ = nullptr;
#endif
};

}  // namespace deq_test
