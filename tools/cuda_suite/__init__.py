"""What `tools/cuda_device_suite.py` runs on a machine with a GPU, one part a file."""
