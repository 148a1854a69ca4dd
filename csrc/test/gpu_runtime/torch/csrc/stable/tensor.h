// Tensors with what the ops of csrc/cuda ask of them, all on one device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <utility>
#include <vector>

#define STD_TORCH_CHECK(holds, ...)                                 \
  if (!(holds)) {                                                   \
    throw std::runtime_error(torch::headeronly::text(__VA_ARGS__)); \
  }

namespace torch {
namespace headeronly {

enum class ScalarType { Double, Float, Half, BFloat16, Long, Bool };

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace headeronly

namespace stable {

// Memory that was let go of is kept, and holds this until somebody writes to it.
class Memory {
 public:
  static constexpr unsigned char kFreed = 0xff;  // NaN in every floating-point type

  explicit Memory(size_t bytes) : bytes_(bytes, 0) {}
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    std::fill(bytes_.begin(), bytes_.end(), kFreed);
    freed().push_back(std::move(bytes_));
  }

  void* data() { return bytes_.data(); }

  // Whether nobody wrote to what was let go of, which is forgotten now.
  static bool freed_is_untouched() {
    bool untouched = true;
    for (const std::vector<unsigned char>& bytes : freed()) {
      for (unsigned char byte : bytes) {
        untouched = untouched && byte == kFreed;
      }
    }
    freed().clear();
    return untouched;
  }

 private:
  static std::vector<std::vector<unsigned char>>& freed() {
    static std::vector<std::vector<unsigned char>> all;
    return all;
  }

  std::vector<unsigned char> bytes_;
};

// Contiguous.
class Tensor {
 public:
  Tensor(std::vector<int64_t> sizes, headeronly::ScalarType dtype)
      : sizes_(std::move(sizes)), dtype_(dtype) {
    memory_ = std::make_shared<Memory>(static_cast<size_t>(numel()) * element_size());
  }

  const std::vector<int64_t>& sizes() const { return sizes_; }
  int64_t dim() const { return static_cast<int64_t>(sizes_.size()); }
  int64_t size(int64_t i) const { return sizes_[static_cast<size_t>(i)]; }
  int64_t stride(int64_t i) const {
    int64_t elements = 1;
    for (int64_t inner = dim() - 1; inner > i; --inner) {
      elements *= size(inner);
    }
    return elements;
  }
  std::vector<int64_t> strides() const {
    std::vector<int64_t> strides;
    for (int64_t i = 0; i < dim(); ++i) {
      strides.push_back(stride(i));
    }
    return strides;
  }
  int64_t numel() const {
    int64_t elements = 1;
    for (int64_t size : sizes_) {
      elements *= size;
    }
    return elements;
  }
  size_t element_size() const {
    switch (dtype_) {
      case headeronly::ScalarType::Bool:
        return 1;
      case headeronly::ScalarType::Half:
      case headeronly::ScalarType::BFloat16:
        return 2;
      case headeronly::ScalarType::Float:
        return 4;
      default:
        return 8;
    }
  }
  headeronly::ScalarType scalar_type() const { return dtype_; }
  bool is_contiguous() const { return true; }
  bool is_cuda() const { return true; }
  int get_device_index() const { return 0; }
  void* data_ptr() const { return memory_->data(); }

 private:
  std::vector<int64_t> sizes_;
  headeronly::ScalarType dtype_;
  std::shared_ptr<Memory> memory_;
};

}  // namespace stable
}  // namespace torch
