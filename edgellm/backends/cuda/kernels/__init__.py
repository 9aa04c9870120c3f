"""Kernels, one file a family, and the constants they share with the runtime, in modules that import nothing else."""
