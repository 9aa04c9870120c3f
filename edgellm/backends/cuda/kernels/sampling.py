"""The next token from logits, on the device: the most likely, or one drawn with temperature, top-k and top-p.

Each record says what its row wants (`record.py`). Two stages find the largest of

    logit                                        temperature 0; the first one on ties
    logit / temperature - ln(E), E exponential   otherwise, over the tokens that are kept: a draw from softmax(logits /
                                                 temperature), the Gumbel-max trick as a race of exponentials

E of token i comes from Philox with the counter (i / 4, DRAW) and the sequence's seed, so a draw depends on nothing but
these. `sample_threshold` runs before where some row limits its choice: it leaves each row the least logit that is kept.
A row with a logit that is NaN or infinite gets `NOT_FINITE` in place of a token; those beyond `VOCAB`, which are never
chosen, count for that too.

    sample_threshold   grid rows: top_k's least logit, then top_p's among what that leaves
    sample_blocks      grid blocks, rows: the best of each stretch of the vocabulary
    sample_rows        grid rows: the best of all

Bytes: the logits once, with limits some seven times more, from the L2 cache.
"""

from __future__ import annotations

from edgellm.backends.cuda.kernels.declare import kernel
from edgellm.backends.cuda.kernels.philox import philox
from edgellm.backends.cuda.kernels.record import (
    DRAW,
    RECORD_WORDS,
    SEED_HIGH,
    SEED_LOW,
    TEMPERATURE,
    VOCAB,
)
from edgellm.backends.cuda.kernels.sampling_plan import NOT_FINITE, SAMPLE_THREADS
from edgellm.backends.cuda.ptx import (
    cuda,
    device,
    f32,
    f32_of_bits,
    f32_of_u32,
    fabs,
    fma,
    griddep_launch,
    griddep_wait,
    lg2,
    rcp,
    shfl_xor,
    shfl_xor_u32,
    u32,
)

_THREADS = u32(SAMPLE_THREADS)
_WARPS = SAMPLE_THREADS // 32
_LOG2_E = f32(1.4426950408889634)
_NOT_FINITE = u32(NOT_FINITE)
_LOWEST = f32(float("-inf"))
_LARGEST_FINITE = f32(3.4028234663852886e38)


@device
def exponential(word):
    """-ln(1 - v) of the uniform v = (word + 1/2) / 2^32: a draw with mean 1, precise where it is small."""
    v = f32_of_u32(word) * f32(2.0**-32) + f32(2.0**-33)
    series = f32(1.0 / 8.0)
    for i in range(7):
        series = fma(series, v, f32(1.0) / f32(7 - i))
    rest = f32(1.0) - v
    rest = rest if rest > f32(2.0**-33) else f32(2.0**-33)
    return v * series if v < f32(0.25) else lg2(rest) * f32(-0.6931471805599453)


@device
def better(value, token, best, best_token):
    """Whether (value, token) comes before (best, best_token): larger, or as large with a lower id."""
    return value > best or (value == best and token < best_token)


@device
def block_best(best, token, values, tokens):
    """The best of the block and its token, in every thread; `values`, `tokens` are shared memory, one a warp."""
    for step in range(5):
        other, other_token = shfl_xor(best, u32(16 >> step)), shfl_xor_u32(token, u32(16 >> step))
        if better(other, other_token, best, token):
            best, token = other, other_token
    thread = u32(cuda.threadIdx.x)
    values[thread >> u32(5)] = best
    tokens[thread >> u32(5)] = token
    cuda.syncthreads()
    for warp in range(u32(_WARPS)):
        if better(values[warp], tokens[warp], best, token):
            best, token = values[warp], tokens[warp]
    return best, token


@kernel(
    "sample_blocks",
    (
        ("logits", "f32*"),
        ("record", "u32*"),
        ("thresholds", "f32*"),
        ("values", "f32*"),
        ("tokens", "u32*"),
        ("stride", "u32"),
        ("limited", "u32"),
    ),
    threads=SAMPLE_THREADS,
    lowest=70,
    registers=56,
)
def sample_blocks(logits, record, thresholds, values, tokens, stride, limited):
    """logits [rows, stride]; thresholds [rows] are read where `limited` is not 0.

    Leaves values, tokens [rows][blocks].
    """
    griddep_wait()
    griddep_launch()
    shared_values = cuda.shared.array(_WARPS, f32, alignment=16)
    shared_tokens = cuda.shared.array(_WARPS, u32, alignment=16)
    row, blocks = u32(cuda.blockIdx.y), u32(cuda.gridDim.x)
    own = u32(row * u32(RECORD_WORDS))
    temperature = f32_of_bits(record[own + u32(TEMPERATURE)])
    seed_low, seed_high = record[own + u32(SEED_LOW)], record[own + u32(SEED_HIGH)]
    draw, vocab = record[own + u32(DRAW)], record[own + u32(VOCAB)]
    threshold = thresholds[row] if limited != u32(0) else _LOWEST
    best, token = _LOWEST, _NOT_FINITE
    factor = _LOG2_E * rcp(temperature)
    quads = u32(u32(stride + u32(3)) >> u32(2))
    quad = u32(u32(cuda.blockIdx.x) * _THREADS + u32(cuda.threadIdx.x))
    while quad < quads:
        a, b, c, d = u32(0), u32(0), u32(0), u32(0)
        if temperature != f32(0.0):
            a, b, c, d = philox(quad, draw, u32(0), u32(0), seed_low, seed_high)
        for i in range(u32(4)):
            candidate = u32(quad * u32(4) + i)
            if candidate < stride:
                logit = logits[row * stride + candidate]
                value = logit
                if temperature != f32(0.0):
                    word = a if i == u32(0) else b if i == u32(1) else c if i == u32(2) else d
                    value = logit * factor - lg2(exponential(word)) if logit >= threshold else _LOWEST
                    value = value if value <= _LARGEST_FINITE else _LARGEST_FINITE
                value = value if candidate < vocab else _LOWEST
                if not fabs(logit) <= _LARGEST_FINITE:
                    value, candidate = f32(float("inf")), _NOT_FINITE
                if better(value, candidate, best, token):
                    best, token = value, candidate
        quad = u32(quad + blocks * _THREADS)
    best, token = block_best(best, token, shared_values, shared_tokens)
    if u32(cuda.threadIdx.x) == u32(0):
        values[row * blocks + u32(cuda.blockIdx.x)] = best
        tokens[row * blocks + u32(cuda.blockIdx.x)] = token


@kernel(
    "sample_rows",
    (("values", "f32*"), ("tokens", "u32*"), ("out", "u32*"), ("out_stride", "u32"), ("blocks", "u32")),
    threads=SAMPLE_THREADS,
    lowest=70,
    registers=32,
)
def sample_rows(values, tokens, out, out_stride, blocks):
    """The best of values, tokens [rows][blocks]; row r's goes to out[r * out_stride]."""
    griddep_wait()
    griddep_launch()
    shared_values = cuda.shared.array(_WARPS, f32, alignment=16)
    shared_tokens = cuda.shared.array(_WARPS, u32, alignment=16)
    row = u32(cuda.blockIdx.x)
    best, token = _LOWEST, _NOT_FINITE
    i = u32(cuda.threadIdx.x)
    while i < blocks:
        if better(values[row * blocks + i], tokens[row * blocks + i], best, token):
            best, token = values[row * blocks + i], tokens[row * blocks + i]
        i = u32(i + _THREADS)
    best, token = block_best(best, token, shared_values, shared_tokens)
    if u32(cuda.threadIdx.x) == u32(0):
        out[row * out_stride] = token
