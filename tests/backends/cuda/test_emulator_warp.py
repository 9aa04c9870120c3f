"""Shuffles, votes and tensor-core products of a warp against the manual's lane by lane definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends.cuda.ptx_kernels import entry, launch, run
from tools.ptx_emulator import EmulatorError

few = settings(max_examples=8, deadline=None)
RANDOM = np.random.default_rng(5)
LANE = np.arange(64, dtype=np.uint32)


def shuffled(mode: str, lane: int, by: int, clamp: int) -> tuple[int, bool]:
    by, limit, segment = by & 31, clamp & 31, clamp >> 8 & 31
    highest = lane & segment | limit & ~segment
    if mode == "up":
        return (lane - by, True) if lane - by >= highest else (lane, False)
    wanted = {"down": lane + by, "bfly": lane ^ by, "idx": lane & segment | by & ~segment}[mode]
    return (wanted, True) if wanted <= highest else (lane, False)


@few
@given(st.sampled_from(["up", "down", "bfly", "idx"]), st.integers(0, 31), st.sampled_from([32, 16, 8]))
def test_shuffles(mode: str, by: int, width: int) -> None:
    clamp = (32 - width) << 8 | (0 if mode == "up" else 31)
    values = RANDOM.integers(0, 2**32, 64, dtype=np.uint32)
    found, inside = run(f"shfl.sync.{mode}.b32 o0|o1, i0, {by}, {clamp}, -1;", ["u4", "?"], values)
    for thread in range(64):
        lane, valid = shuffled(mode, thread % 32, by, clamp)
        assert found[thread] == values[thread // 32 * 32 + lane]
        assert inside[thread] == valid


def test_shuffle_by_a_register() -> None:
    values, by = RANDOM.integers(0, 2**32, 32, dtype=np.uint32), RANDOM.integers(0, 32, 32, dtype=np.uint32)
    (found,) = run("shfl.sync.idx.b32 o0, i0, i1, 31, -1;", ["u4"], values, by)
    assert (found == values[by]).all()


def test_votes() -> None:
    bits = RANDOM.integers(0, 2, 64, dtype=np.uint32)
    code = ".reg .pred p; setp.ne.u32 p, i0, 0; "
    (ballot,) = run(code + "vote.sync.ballot.b32 o0, p, -1;", ["u4"], bits)
    expected = [sum(int(bits[32 * warp + k]) << k for k in range(32)) for warp in range(2)]
    assert ballot.tolist() == np.repeat(np.array(expected, np.uint32), 32).tolist()
    (none, some) = run(code + "vote.sync.any.pred o0, p, -1; vote.sync.all.pred o1, !p, -1;", ["?", "?"], bits * 0)
    assert not none.any()
    assert some.all()


def test_match_and_redux() -> None:
    values = RANDOM.integers(0, 3, 32, dtype=np.uint32)
    (found,) = run("match.any.sync.b32 o0, i0, -1;", ["u4"], values)
    assert found.tolist() == [sum(1 << k for k in range(32) if values[k] == v) for v in values]
    wide = RANDOM.integers(0, 2**32, 32, dtype=np.uint32)
    for name, expected in (("add", int(wide.sum(dtype=np.uint64)) % 2**32), ("max", wide.max()), ("min", wide.min())):
        (found,) = run(f"redux.sync.{name}.u32 o0, i0, -1;", ["u4"], wide)
        assert (found == expected).all()


def test_a_lane_that_does_not_take_part_is_noticed() -> None:
    with pytest.raises(EmulatorError, match="lane outside its membermask"):
        run("shfl.sync.bfly.b32 o0, i0, 1, 31, 0x7;", ["u4"], LANE[:32])
    body = """.reg .pred p; .reg .b32 t, r; mov.u32 t, %tid.x; setp.lt.u32 p, t, 7; @p bra $few; ret;
    $few: shfl.sync.down.b32 r, t, 1, 31, -1;"""
    with pytest.raises(EmulatorError, match="lane that does not take part") as caught:
        launch(entry([], body), [])
    assert caught.value.thread == ((0, 0, 0), (6, 0, 0))


def test_a_warp_that_never_comes_together() -> None:
    body = """.reg .pred p; .reg .b32 t, r; mov.u32 t, %tid.x; setp.lt.u32 p, t, 7; @p bra $one;
    shfl.sync.down.b32 r, t, 1, 31, -1; bra $end;
    $one: shfl.sync.up.b32 r, t, 1, 0, -1;
    $end:"""
    with pytest.raises(EmulatorError, match="never comes together"):
        launch(entry([], body), [])


def brain(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def fragments(matrix: np.ndarray, per_word: int, tall: bool) -> np.ndarray:
    """The manual's layout, lane by lane: [words, 32] of A (rows g, g + 8) or, from B transposed, of B (column g)."""
    rows, depth = matrix.shape
    blocks = depth // (4 * per_word)
    words = []
    for block in range(blocks):
        for row in range(0, rows, 8) if tall else (0,):
            word = [
                matrix[row + lane // 4, block * 4 * per_word + lane % 4 * per_word :][:per_word] for lane in range(32)
            ]
            words.append(np.ascontiguousarray(word).view(np.uint32)[:, 0])
    return np.array(words)


SHAPES = [
    ("m16n8k16.row.col.f32.bf16.bf16.f32", 16, 16),
    ("m16n8k16.row.col.f32.f16.f16.f32", 16, 16),
    ("m16n8k8.row.col.f32.f16.f16.f32", 16, 8),
    ("m16n8k32.row.col.s32.s8.s8.s32", 16, 32),
    ("m8n8k16.row.col.s32.s8.s8.s32", 8, 16),
    ("m16n8k32.row.col.s32.u8.s8.s32", 16, 32),
]


@pytest.mark.parametrize(("shape", "rows", "depth"), SHAPES)
def test_tensor_products(shape: str, rows: int, depth: int) -> None:
    integer = "s32" in shape
    if integer:
        left = np.uint8 if ".u8." in shape else np.int8
        a = RANDOM.integers(np.iinfo(left).min, np.iinfo(left).max + 1, (rows, depth)).astype(left)
        b = RANDOM.integers(-128, 128, (8, depth)).astype(np.int8)
        c = RANDOM.integers(-1000, 1000, (rows, 8)).astype(np.int32)
        bits, exact = (a, b), (a.astype(np.float64), b.astype(np.float64))
    else:
        a, b = RANDOM.standard_normal((rows, depth)), RANDOM.standard_normal((8, depth))
        c = RANDOM.standard_normal((rows, 8)).astype(np.float32)
        if "bf16" in shape:
            bits = brain(a), brain(b)
            exact = tuple((v.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64) for v in bits)
        else:
            bits = a.astype(np.float16).view(np.uint16), b.astype(np.float16).view(np.uint16)
            exact = tuple(v.view(np.float16).astype(np.float64) for v in bits)
    per_word = 4 if integer else 2
    words = [*fragments(bits[0], per_word, True), *fragments(bits[1], per_word, False)]
    lefts = len(words) - 8 * depth // 32 // per_word
    sums = [np.array([c[lane // 4 + row, lane % 4 * 2 + k] for lane in range(32)]).view(np.uint32)
            for row in range(0, rows, 8) for k in (0, 1)]  # fmt: skip
    names = [f"i{k}" for k in range(len(words) + len(sums))]
    groups = [[f"o{k}" for k in range(len(sums))], names[:lefts], names[lefts : len(words)], names[len(words) :]]
    code = f"mma.sync.aligned.{shape} " + ", ".join("{" + ", ".join(group) + "}" for group in groups) + ";"
    found = run(code, ["i4" if integer else "f4"] * len(sums), *words, *sums)
    expected = exact[0] @ exact[1].T + c
    for k, values in enumerate(found):
        want = [expected[lane // 4 + k // 2 * 8, lane % 4 * 2 + k % 2] for lane in range(32)]
        np.testing.assert_allclose(values, want, rtol=2e-7, atol=1e-6)


@pytest.mark.parametrize(("count", "trans"), [(1, False), (2, True), (4, False), (4, True)])
def test_ldmatrix(count: int, trans: bool) -> None:
    """Row r of matrix m lies where lane 8 m + r says; stmatrix puts it back."""
    data = RANDOM.integers(0, 2**16, (count, 8, 8), dtype=np.uint16)
    back = np.zeros_like(data)
    out = np.zeros((count, 32), np.uint32)
    regs = "{" + ", ".join(f"r{k}" for k in range(count)) + "}"
    dots = ".trans" if trans else ""
    stores = "\n".join(f"st.global.b32 [o+{128 * k}], r{k};" for k in range(count))
    body = f""".shared .align 16 .b8 tile[{128 * count}]; .shared .align 16 .b8 other[{128 * count}];
    .reg .b32 t, s, n, r0, r1, r2, r3; .reg .b64 i, o, b, w; .reg .b16 h; .reg .pred p;
    mov.u32 t, %tid.x; mov.u32 s, tile; ld.param.u64 i, [p0]; ld.param.u64 o, [p1]; ld.param.u64 b, [p2];
    rem.u32 n, t, {8 * count}; mul.wide.u32 w, n, 16; add.u64 i, i, w; mad.lo.u32 s, n, 16, s;
    .reg .b32 x0, x1, x2, x3; ld.global.v4.b32 {{x0, x1, x2, x3}}, [i]; st.shared.v4.b32 [s], {{x0, x1, x2, x3}};
    bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x{count}{dots}.shared.b16 {regs}, [s];
    sub.u32 s, s, tile; add.u32 s, s, other;
    stmatrix.sync.aligned.m8n8.x{count}{dots}.shared.b16 [s], {regs};
    bar.sync 0;
    ld.shared.v4.b32 {{x0, x1, x2, x3}}, [s]; add.u64 b, b, w; st.global.v4.b32 [b], {{x0, x1, x2, x3}};
    mul.wide.u32 w, t, 4; add.u64 o, o, w; {stores}"""
    launch(entry(["u64"] * 3, body), [data, out, back])
    for k in range(count):
        matrix = data[k].T if trans else data[k]
        assert (out[k].view(np.uint16).reshape(8, 8) == matrix).all()
    assert (back == data).all()


@pytest.mark.parametrize(
    "collective",
    [
        "shfl.sync.bfly.b32 r, t, 1, 31, -1;",
        "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {r, x}, {x}, {x}, {x, x}; xor.b32 r, t, 1;",
    ],
)
def test_warps_gather_before_what_they_do_together(collective: str) -> None:
    """Threads from 40 on come first; warp 1 waits for its others, warp 2 need not."""
    body = f""".reg .pred p; .reg .b32 t, r, x; .reg .b64 a, w; mov.u32 t, %tid.x; mov.u32 x, 0; ld.param.u64 a, [p0];
    mul.wide.u32 w, t, 4; add.u64 a, a, w; setp.lt.u32 p, t, 40; @p bra $late;
    $join: {collective} st.global.u32 [a], r; ret;
    $late: bra $join;"""
    out = np.zeros(96, np.uint32)
    launch(entry(["u64"], body), [out], block=(96,))
    assert (out == np.arange(96) ^ 1).all()


def test_a_warp_that_has_lost_lanes_has_no_matrices() -> None:
    body = """.reg .pred p; .reg .b32 t, r; mov.u32 t, %tid.x; setp.lt.u32 p, t, 7; @p ret;
    mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {r, r}, {r}, {r}, {r, r};"""
    with pytest.raises(EmulatorError, match="lanes of the warp have left"):
        launch(entry([], body), [])
