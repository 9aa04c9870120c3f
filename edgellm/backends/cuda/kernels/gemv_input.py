"""The activations of a GEMV on their way into shared memory: gathered, normed, split into two bfloat16.

A chunk of x lies as columns of `stride` words: column 2 t is the first bfloat16 of token t, column 2 t + 1 the second.
In a column each 64 inputs are 32 words in the order of the B operand: lane t of a quad reads its eight words for the
four blocks in a row, so two 128-bit loads a tile; columns are four words more than their inputs apart, so that the
lanes of two columns meet different banks.

RMSNorm needs no pass of its own: x is multiplied by the norm's weight here, the squares of what came in are summed on
the way, and the kernel's end divides by their root.
"""

from __future__ import annotations

from edgellm.backends.cuda.kernels.gemv_plan import WARPS
from edgellm.backends.cuda.kernels.linear_flags import NORM, ORDER, VECTORS
from edgellm.backends.cuda.ptx import (
    cuda,
    device,
    f32,
    fma,
    ld64_f32,
    ld128_f32,
    shfl_xor,
    split_bf16x2,
    u32,
    unpack_bf16x2,
    warp_sum,
)

_THREADS = 32 * WARPS


@device
def read_quad(values, o, x, base, k, inputs, order, flags):
    """Four inputs from k on of the row that begins at x[base], by the permutation where there is one, to values[o] on;
    0 beyond the last."""
    for i in range(u32(4)):
        values[o + i] = f32(0)
    if flags & u32(VECTORS):
        if k < inputs:
            values[o], values[o + u32(1)], values[o + u32(2)], values[o + u32(3)] = ld128_f32(x, u32(base + k))
    else:
        for i in range(u32(4)):
            source = u32(k + i)
            if source < inputs:
                if flags & u32(ORDER):
                    source = order[source]
                values[o + i] = x[u32(base + source)]


@device
def read_pairs(values, x, base, k, inputs, order, flags):
    """The inputs k, k + 8, k + 1 and k + 9 of the row that begins at x[base], as `read_quad`: a lane's of a block."""
    if flags & u32(VECTORS):
        for i in range(u32(2)):
            source = u32(k + i * u32(8))
            values[i], values[i + u32(2)] = f32(0), f32(0)
            if source < inputs:
                values[i], values[i + u32(2)] = ld64_f32(x, u32(base + source))
    else:
        for i in range(u32(4)):
            source = u32(k + (i & u32(1)) * u32(8) + (i >> u32(1)))
            value = f32(0)
            if source < inputs:
                if flags & u32(ORDER):
                    source = order[source]
                value = x[u32(base + source)]
            values[i] = value


def make_pair_stage(put, warps):
    """The function that brings a chunk of x into shared memory below sm_80: a thread has four inputs of a block, those
    of `read_pairs`, and gives them to `put(planes, sums, v, token, column, quad, quads)`, which knows their place;
    `column` is where the token's words begin."""
    threads = 32 * warps

    @device
    def stage(
        planes, sums, squares, x, norm, order, inputs, batch, x_stride, flags, offset, counting, first, quads, stride,
        warp, lane,
    ):  # fmt: skip
        """As `make_stage`'s."""
        v, n = cuda.local.array(4, f32), cuda.local.array(4, f32)
        tid = u32(warp * u32(32) + lane)
        for token in range(batch):
            token = u32(token)
            base, column = u32(token * x_stride), u32(token * stride)
            square = f32(0)
            for quad in range(tid, quads, u32(threads)):
                quad = u32(quad)
                k = u32(first + (quad >> u32(2)) * u32(16) + (quad & u32(3)) * u32(2))
                read_pairs(v, x, base, k, inputs, order, flags)
                if flags & u32(NORM):
                    read_pairs(n, norm, u32(0), k, inputs, order, flags)
                    for i in range(u32(4)):
                        square = fma(v[i], v[i], square)
                        v[i] *= offset + n[i]
                put(planes, sums, v, token, column, quad, quads)
            if counting and flags & u32(NORM):
                square = warp_sum(square)
                if (tid & u32(31)) == u32(0):
                    squares[u32((tid >> u32(5)) * u32(8) + token)] += square

    return stage


def make_stage(group, together):
    """The function that brings a chunk of x into shared memory, for groups of `group` inputs (0: no sums).

    A thread takes `together` quads at a time, all of them read before one is used: they come from the L2 cache.
    """
    numbers = 4 * together
    lanes = u32(max(group // 4, 1))  # neighbours that share a group
    halvings = max(group // 4, 1).bit_length() - 1

    @device
    def place_quad(planes, sums, v, o, token, quad, quads, stride):
        """Four inputs, v[o] on, to their places, and the sum of their group."""
        p0, r0 = split_bf16x2(v[o], v[o + u32(1)])
        p1, r1 = split_bf16x2(v[o + u32(2)], v[o + u32(3)])
        at = u32(
            token * stride * u32(2)
            + ((quad >> u32(4)) << u32(5))
            + ((quad & u32(1)) << u32(4))
            + (((quad >> u32(2)) & u32(3)) << u32(1))
            + ((quad >> u32(1)) & u32(1))
        )
        planes[at] = p0
        planes[u32(at + u32(8))] = p1
        planes[u32(at + stride)] = r0
        planes[u32(at + stride + u32(8))] = r1
        if group:
            a, b = unpack_bf16x2(p0)
            c, d = unpack_bf16x2(p1)
            e, f = unpack_bf16x2(r0)
            g, h = unpack_bf16x2(r1)
            total = ((a + b) + (c + d)) + ((e + f) + (g + h))
            for step in range(halvings):
                total += shfl_xor(total, u32(1 << step))
            if (quad & (lanes - u32(1))) == u32(0):
                sums[u32((token * quads + quad) // lanes)] = total

    @device
    def stage(
        planes, sums, squares, x, norm, order, inputs, batch, x_stride, flags, offset, counting, first, quads, stride,
        warp, lane,
    ):  # fmt: skip
        """The inputs first .. first + 4 quads - 1 of every token.

        A warp's 32 quads are of one token: `quads` is a multiple of 32.

        Args:
            planes: shared u32 [2 batch][stride], see above.
            sums: shared f32 [batch][groups of the chunk]: of the numbers that `planes` stand for.
            squares: shared f32 [warps][8 tokens]: where flags have NORM, the sums of squares go up.
            counting: whether these inputs were not here before.
            first: first input, a multiple of 64.
            warp, lane: of the thread.
        """
        v, n = cuda.local.array(numbers, f32), cuda.local.array(numbers, f32)
        tokens, quad_of = cuda.local.array(together, u32), cuda.local.array(together, u32)
        token, begin = u32(0), u32(warp << u32(5))  # of the warp: ptxas then sees that its lanes stay together
        while token < batch:
            for i in range(u32(together)):
                while begin >= quads and token < batch:
                    begin, token = u32(begin - quads), u32(token + u32(1))
                quad = u32(begin + lane)
                tokens[i], quad_of[i] = token, quad
                if token < batch:
                    k = u32(first + quad * u32(4))
                    read_quad(v, i * u32(4), x, u32(token * x_stride), k, inputs, order, flags)
                    if flags & u32(NORM):
                        read_quad(n, i * u32(4), norm, u32(0), k, inputs, order, flags)
                begin = u32(begin + u32(_THREADS))
            for i in range(u32(together)):
                if tokens[i] < batch:
                    if flags & u32(NORM):
                        square = f32(0)
                        for j in range(i * u32(4), i * u32(4) + u32(4)):
                            square = fma(v[j], v[j], square)
                            v[j] *= offset + n[j]
                        square = warp_sum(square)
                        if counting and lane == u32(0):
                            squares[u32(warp * u32(8) + tokens[i])] += square
                    place_quad(planes, sums, v, u32(i * u32(4)), tokens[i], quad_of[i], quads, stride)

    return stage
