"""Kernels, one file a family, and the constants they share with the runtime. Modules of constants import nothing else."""
