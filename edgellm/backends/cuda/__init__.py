"""The CUDA backend: kernels written in Python and shipped as PTX, launched through the driver's own library."""
