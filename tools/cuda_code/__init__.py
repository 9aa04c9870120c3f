"""Building and inspecting the CUDA kernels' code: sources, assembler, machine code, table."""
