// Ops are called by their names in C++, so registering them does nothing.
#pragma once

namespace torch {
namespace stable {

struct Library {
  template <typename Function>
  void impl(const char*, Function) {}
};

}  // namespace stable
}  // namespace torch

#define TORCH_BOX(function) (function)
#define DEQ_JOINED(a, b) a##b
#define DEQ_REGISTRATION(line) DEQ_JOINED(register_ops_, line)
#define STABLE_TORCH_LIBRARY_IMPL(library, key, name) \
  [[maybe_unused]] static void DEQ_REGISTRATION(__COUNTER__)(torch::stable::Library & name)
