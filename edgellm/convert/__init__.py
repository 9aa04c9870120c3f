"""The converter: calibrate, prune, quantize, evaluate, report; from a published checkpoint to a smaller one."""
