"""What the Triton kernels of every op family share: argument checks, launches, device functions.

Nothing here is imported before a Triton kernel is wanted; `import deq_kernels` never brings in
Triton. In the kernels, a runtime argument is annotated `tl.tensor` (a pointer or a whole number)
or `tl.float64` (an option, which Triton would otherwise round to float32). Each runs compiled on a
GPU and, where TRITON_INTERPRET=1 was set before the import, in Triton's interpreter on CPU tensors.
"""
