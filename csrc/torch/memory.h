// No argument that an op writes to may share memory with another one, or with itself: what was
// checked would be overwritten, and then used.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "torch/checks.h"

namespace deq {

// The dimensions of a tensor, of three at most, or of two tensors alike that lie a stride apart.
class Places {
 public:
  explicit Places(const Tensor& t) {
    const auto sizes = t.sizes();
    const auto strides = t.strides();
    for (size_t i = 0; i < sizes.size(); ++i) {
      add(sizes[i], strides[i]);
    }
  }

  void add(int64_t size, int64_t stride) {
    empty_ = empty_ || size == 0;
    if (size <= 1) {
      return;
    }
    int place = count_++;
    for (; place > 0 && dimensions_[place - 1].stride > stride; --place) {
      dimensions_[place] = dimensions_[place - 1];
    }
    dimensions_[place] = {stride, size};
  }

  // Whether every dimension steps over all that the denser ones span: then no two elements share a
  // place.
  bool are_distinct() const {
    if (empty_) {
      return true;
    }
    int64_t span = 1;
    for (int i = 0; i < count_; ++i) {
      if (dimensions_[i].stride < span) {
        return false;
      }
      span += (dimensions_[i].size - 1) * dimensions_[i].stride;
    }
    return true;
  }

 private:
  struct Dimension {
    int64_t stride;
    int64_t size;
  };

  static constexpr int kMost = 4;
  Dimension dimensions_[kMost];  // from the densest one on
  int count_ = 0;
  bool empty_ = false;
};

// The bytes of an argument from its first element to its last one; none where it is empty.
struct Extent {
  const char* name;
  const Tensor* tensor;
  uintptr_t begin;
  uintptr_t end;

  static Extent of(const char* name, const Tensor& t) {
    const auto sizes = t.sizes();
    const auto strides = t.strides();
    int64_t last = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      if (sizes[i] == 0) {
        return {name, &t, 0, 0};
      }
      last += (sizes[i] - 1) * strides[i];
    }
    const auto begin = reinterpret_cast<uintptr_t>(t.data_ptr());
    STD_TORCH_CHECK(begin != 0, name, " has elements but no memory; its storage was resized");
    return {name, &t, begin, begin + static_cast<uintptr_t>(last + 1) * t.element_size()};
  }

  bool meets(const Extent& other) const { return begin < other.end && other.begin < end; }

  // Of two whose extents meet: rows of tensors alike may take turns, as those of two halves of one
  // buffer do.
  bool takes_turns_with(const Extent& other) const {
    const auto alike = [](const auto& a, const auto& b) {
      return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin());
    };
    const uintptr_t item = tensor->element_size();
    const uintptr_t apart = std::max(begin, other.begin) - std::min(begin, other.begin);
    if (item != other.tensor->element_size() || apart % item != 0 ||
        !alike(tensor->sizes(), other.tensor->sizes()) ||
        !alike(tensor->strides(), other.tensor->strides())) {
      return false;
    }
    Places both(*tensor);
    both.add(2, static_cast<int64_t>(apart / item));
    return both.are_distinct();
  }
};

// Of arguments that no op writes to.
inline void check_readable(std::initializer_list<NamedTensor> arguments) {
  for (const NamedTensor& argument : arguments) {
    Extent::of(argument.name, *argument.tensor);
  }
}

// The arguments of one call: first all that it writes to, then those that it only reads.
class Memory {
 public:
  // A contiguous argument.
  void writes(const char* name, const Tensor& t) {
    const Extent extent = reads(name, t);
    written_[count_++] = extent;
  }

  // Rows with any strides between them.
  void writes_rows(const char* name, const Tensor& t) {
    STD_TORCH_CHECK(Places(t).are_distinct(), name,
                    " is written to, so no two of its elements may share memory; pass ", name,
                    ".contiguous()");
    writes(name, t);
  }

  Extent reads(const char* name, const Tensor& t) const {
    const Extent extent = Extent::of(name, t);
    for (int i = 0; i < count_; ++i) {
      STD_TORCH_CHECK(!extent.meets(written_[i]) || extent.takes_turns_with(written_[i]), name,
                      " must not share memory with ", written_[i].name,
                      ", which is written to; pass ", name, ".clone()");
    }
    return extent;
  }

 private:
  static constexpr int kMostWritten = 10;
  Extent written_[kMostWritten];
  int count_ = 0;
};

}  // namespace deq
