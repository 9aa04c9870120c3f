"""The CUDA backend: kernels written in Python and shipped as PTX, launched through the driver's own library."""

from edgellm.backends.cuda.backend import CudaBackend

backend = CudaBackend()
