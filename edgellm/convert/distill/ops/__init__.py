"""The ops of a program for training, one module an op: a forward that keeps what its backward needs, and the backward.

The formulas are those of `model/program.py`. All work in the dtype of their arrays (float32; the tests take float64 to
compare with finite differences). Dimensions: B sequences, T tokens of each, D the width of a buffer, O out_features,
H heads, KvH KV heads, Hd head_dim, V vocab_size. A buffer is [B * T, D], the tokens of a sequence one after the other.
`g` is the gradient of the loss by the op's output; a weight's gradient is added to the array given for it.
"""
