#pragma once

namespace torch {
namespace stable {
namespace accelerator {

struct DeviceGuard {
  explicit DeviceGuard(int) {}
};

}  // namespace accelerator
}  // namespace stable
}  // namespace torch
