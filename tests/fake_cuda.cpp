// What torch without CUDA lacks to follow fake tensors on `cuda` through indexing and the backward pass: a guard of the
// device, and the answer that the device exists. Compiled and loaded by tests/fake_cuda.py, before torch is imported.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/FakeGuardImpl.h>

namespace at {
struct FakeHooks : CUDAHooksInterface {
  explicit FakeHooks(CUDAHooksArgs) {}
  bool isBuilt() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
};
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", FakeHooks)
} // namespace at

static c10::impl::FakeGuardImpl<c10::DeviceType::CUDA> guard;
static c10::impl::DeviceGuardImplRegistrar registrar(c10::DeviceType::CUDA, &guard);
