// The shared memory of one block of the emulator, and when it is there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace deq_test {

enum class Presence { kAhead, kThere, kGone };  // of a block

class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes) : bytes_(bytes), memory_(bytes + 2 * kMore) {
    // On a GPU it begins on a multiple of 16. That of 32 is chance.
    auto* const first = memory_.data();
    const size_t past = reinterpret_cast<uintptr_t>(first) % kMore;
    data_ = first + (kMore - past) + kMore / 2;
  }

  // For a block that has not begun.
  void clear() {
    presence_ = Presence::kAhead;
    std::memset(data_, kNothing, bytes_);
  }
  void begin() {
    if (presence_ == Presence::kAhead) {
      presence_ = Presence::kThere;
    }
  }
  void leave() {
    presence_ = Presence::kGone;
    std::memset(data_, kNothing, bytes_);
  }

  Presence presence() const { return presence_; }
  bool is_clear() const {
    for (size_t i = 0; i < bytes_; ++i) {
      if (static_cast<unsigned char>(data_[i]) != kNothing) {
        return false;
      }
    }
    return true;
  }
  char* data() const { return data_; }

 private:
  static constexpr size_t kMore = 32;
  static constexpr unsigned char kNothing = 0xff;  // NaN in every floating-point type

  size_t bytes_;
  std::vector<char> memory_;
  char* data_;
  Presence presence_ = Presence::kAhead;
};

}  // namespace deq_test
