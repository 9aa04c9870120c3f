"""The CPU backend: numba kernels over the vector types of `simd`."""
