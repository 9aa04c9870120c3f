"""The walker: one nopython function that each thread enters for a whole step and that goes down the op table.

Ops never wait; only the walker does, at the barriers that the table names. Everything a step needs comes in four
groups of arrays, so that one compile serves every model:

    model    table, weights, permutations, shape
    space    act, logits, quads, xs, stage, partials, work, wide: scratch, allocated once
    cache    data, layout, storage
    step     counts, token_ids, logits_rows, tokens, runs, items, merges, bounds, cos, sin, ropes, and of the positions
             to come: their cosines, their sines, the tokens chosen (`step.py`)
"""

from __future__ import annotations

import numpy as np

from edgellm.backends.cpu.activation import op_act_mul, op_add, op_softcap
from edgellm.backends.cpu.attention import op_attention, op_attention_merge
from edgellm.backends.cpu.attention_plan import END, FIRST_ROW, NUMBER, ROPE_BLOCK
from edgellm.backends.cpu.barrier import barrier
from edgellm.backends.cpu.best import op_best, op_token
from edgellm.backends.cpu.cache_store import op_store_kv
from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.linear_dense import op_linear_f16
from edgellm.backends.cpu.linear_embed import op_embed
from edgellm.backends.cpu.linear_int import op_linear_int2, op_linear_int4, op_linear_int8
from edgellm.backends.cpu.linear_next import blocks_of, next_begin
from edgellm.backends.cpu.linear_refine import op_peaks, op_refine_int2, op_refine_int4
from edgellm.backends.cpu.linear_tiles import STAGE, WIDEST
from edgellm.backends.cpu.norm import op_rms_norm
from edgellm.backends.cpu.optable import Kind
from edgellm.backends.cpu.quantize import op_arrange, op_quantize
from edgellm.backends.cpu.rope import op_rope
from edgellm.backends.cpu.work import piece_of, pieces_before, share, take
from edgellm.simd import ticks

EMBED, RMS_NORM = int(Kind.EMBED), int(Kind.RMS_NORM)
QUANTIZE, ARRANGE = int(Kind.QUANTIZE), int(Kind.ARRANGE)
LINEAR_INT8, LINEAR_INT4 = int(Kind.LINEAR_INT8), int(Kind.LINEAR_INT4)
LOGITS_INT8, LOGITS_INT4, LOGITS_INT2 = int(Kind.LOGITS_INT8), int(Kind.LOGITS_INT4), int(Kind.LOGITS_INT2)
REFINE_INT4, REFINE_INT2 = int(Kind.REFINE_INT4), int(Kind.REFINE_INT2)
STORE_KV, ROPE = int(Kind.STORE_KV), int(Kind.ROPE)
ATTEND_MERGE = int(Kind.ATTEND_MERGE)
ACT_MUL, ADD, PICK_ROWS, PEAKS = int(Kind.ACT_MUL), int(Kind.ADD), int(Kind.PICK_ROWS), int(Kind.PEAKS)
BEST, TOKEN = int(Kind.BEST), int(Kind.TOKEN)

#: Elements of `shape`, the sizes that are the same for every op.
HEADS, KV_HEADS, HEAD_DIM, WORK_STRIDE, WIDE_STRIDE = range(5)
#: Columns of `ropes`, a row a rotation: of `RopeTables`, tables counted from the start of the joined arrays.
HALF, BY_POSITION, BY_NUMBER, BY_TURN = range(4)
#: Elements of `counts` behind the counts of rows that `optable` names: `Batch.logits_use`; the ids that the next token
#: is chosen from, 0 where it is not.
USE, LIMIT = 2, 3
#: Columns of `bounds`, a row a kind of layer: where its runs, items and merges begin and end, and its tiles.
FIRST_RUN, LAST_RUN, FIRST_ITEM, LAST_ITEM, FIRST_MERGE, LAST_MERGE, TILES = range(7)


@kernel(shared=True)
def op_pick_rows(act, op, logits_rows, count, ith, nth):
    """Copy the `count` rows whose logits are wanted."""
    first, last = share(ith, nth, count)
    for row in range(first, last):
        source = op["source"] + logits_rows[row] * op["source_stride"]
        target = op["out"] + row * op["out_stride"]
        for i in range(op["width"]):
            act[target + i] = act[source + i]


@kernel(inline="always")
def run_piece(model, space, op, count, planes, first, last, following, at):
    """Blocks first .. last - 1 of a linear; the thread's part of the stage begins at `at`, and what it reads next at
    `following` in the weights."""
    weights, kind = model[1], op["kind"]
    act, logits, quads, xs, stage = space[0], space[1], space[2], space[3], space[4]
    out = act if kind <= LINEAR_INT4 else logits
    if kind in (LINEAR_INT4, LOGITS_INT4, REFINE_INT4):
        op_linear_int4(out, quads, xs, stage, weights, op, count, planes, first, last, following, at)
    elif kind in (LINEAR_INT8, LOGITS_INT8):
        op_linear_int8(out, quads, xs, stage, weights, op, count, planes, first, last, following, at)
    elif kind in (LOGITS_INT2, REFINE_INT2):
        op_linear_int2(out, quads, xs, stage, weights, op, count, planes, first, last, following, at)
    else:
        op_linear_f16(out, xs, stage, weights, op, count, first, last, at)


@kernel(shared=True)
def run_linear(model, space, step, op, count, planes, sync, number, ticket, ith, nth):
    """QUANTIZE, ARRANGE, and the linears between buffers and to the logits.

    `number` is that of the row's first piece, `ticket` the thread's; returns both for the row behind it, see `work.py`.
    """
    _, weights, permutations, _ = model
    act, logits, quads, xs, stage = space[0], space[1], space[2], space[3], space[4]
    kind = op["kind"]
    few = step[0][USE] < op["code"] and count == 1
    if kind == QUANTIZE:
        op_quantize(quads, xs, act, stage, permutations, op, count, planes, ith, nth)
    elif kind == ARRANGE:
        op_arrange(xs, act, permutations, op, count, ith, nth)
    elif kind == REFINE_INT4 and few:
        op_refine_int4(logits, quads, xs, stage, weights, act, op, planes, ith, nth)
    elif kind == REFINE_INT2 and few:
        op_refine_int2(logits, quads, xs, stage, weights, act, op, planes, ith, nth)
    elif count > 0:
        blocks, least = blocks_of(op, count)
        left, number = pieces_before(blocks, nth, least, number, ticket)
        while left > 0:
            first, size, at = blocks - left, piece_of(left, nth, least), ith * STAGE
            if count * planes <= WIDEST:  # bound by reading: who knows its next piece can ask for it
                ticket = take(sync, nth)
                left, number = pieces_before(left - size, nth, least, number + 1, ticket)
                following = next_begin(model[0], op, step[0], left, number, ticket, nth)
                run_piece(model, space, op, count, planes, first, first + size, following, at)
            else:
                run_piece(model, space, op, count, planes, first, first + size, op["weight"], at)
                ticket = take(sync, nth)
                left, number = pieces_before(left - size, nth, least, number + 1, ticket)
    return number, ticket


@kernel(shared=True)
def run_attention(model, space, cache, step, layer_kinds, op, count, ith, nth):
    """STORE_KV, ROPE, ATTEND and ATTEND_MERGE."""
    shape = model[3]
    act, partials, work, wide = space[0], space[5], space[6], space[7]
    data, layout, storage = cache
    tokens, runs, items, merges, bounds, cos, sin, ropes = (
        step[3][:count],
        step[4],
        step[5],
        step[6],
        step[7],
        step[8],
        step[9],
        step[10],
    )
    heads, kv_heads, head_dim = shape[HEADS], shape[KV_HEADS], shape[HEAD_DIM]
    work_stride, wide_stride = shape[WORK_STRIDE], shape[WIDE_STRIDE]
    kind, layer, rope = op["kind"], op["layer"], op["rope"]
    half, by_position, by_number, by_turn = 0, 0, 0, 0
    if rope >= 0:
        half, by_position = ropes[rope, HALF], ropes[rope, BY_POSITION]
        by_number, by_turn = ropes[rope, BY_NUMBER], ropes[rope, BY_TURN]
    source, source_stride = op["source"], op["source_stride"]
    if kind == ROPE:
        op_rope(act, source, source_stride, cos, sin, by_position, half, count, heads, head_dim, ith, nth)
        return
    layer_kind = layer_kinds[layer]
    if kind == STORE_KV:
        op_store_kv(
            data,
            layout,
            layer,
            storage,
            tokens,
            layer_kind,
            act,
            source,
            source_stride,
            op["other"],
            op["other_stride"],
            cos,
            sin,
            by_number,
            half,
            kv_heads,
            head_dim,
            work,
            work_stride,
            wide,
            wide_stride,
            ith,
            nth,
        )
        return
    place = bounds[layer_kind]
    if kind == ATTEND_MERGE:
        joined = merges[place[FIRST_MERGE] : place[LAST_MERGE]]
        op_attention_merge(act, op["out"], op["out_stride"], partials, joined, heads, head_dim, ith, nth)
        return
    op_attention(
        act,
        op["out"],
        op["out_stride"],
        source,
        source_stride,
        partials,
        data,
        layout,
        layer,
        storage,
        tokens,
        runs[place[FIRST_RUN] : place[LAST_RUN]],
        items[place[FIRST_ITEM] : place[LAST_ITEM]],
        place[TILES],
        cos,
        sin,
        by_turn,
        half,
        op["scale"],
        op["cap"],
        op["window"],
        heads,
        kv_heads,
        head_dim,
        work,
        work_stride,
        wide,
        wide_stride,
        ith,
        nth,
    )


@kernel(shared=True)
def run_elements(model, space, step, op, count, ith, nth):
    """The ops that go over rows of numbers."""
    weights = model[1]
    act, logits = space[0], space[1]
    kind, out, out_stride, width = op["kind"], op["out"], op["out_stride"], op["width"]
    if kind == EMBED:
        op_embed(act, weights, op, step[1], op["code"], op["multiplier"], count, ith, nth)
    elif kind == RMS_NORM:
        op_rms_norm(
            act,
            out,
            out_stride,
            op["source"],
            op["source_stride"],
            weights,
            op["weight"],
            count,
            width,
            op["group"],
            op["eps"],
            op["offset"],
            ith,
            nth,
        )
    elif kind == ACT_MUL:
        gate, gate_stride, up, up_stride = op["source"], op["source_stride"], op["other"], op["other_stride"]
        op_act_mul(act, out, out_stride, gate, gate_stride, up, up_stride, op["code"], count, width, ith, nth)
    elif kind == ADD:
        op_add(act, out, out_stride, op["other"], op["other_stride"], op["multiplier"], count, width, ith, nth)
    elif kind == PICK_ROWS:
        op_pick_rows(act, op, step[2], count, ith, nth)
    elif kind == PEAKS:
        if step[0][USE] < op["code"] and count == 1:
            op_peaks(act, op["other"], logits, width, ith, nth)
    elif kind == BEST:
        if step[0][LIMIT] > 0:
            op_best(act, op["other"], logits, width, op["group"], step[0][LIMIT], count, ith, nth)
    elif kind == TOKEN:
        if step[0][LIMIT] > 0:
            op_token(act, op["other"], out, logits, width, op["group"], step[0][LIMIT], count, ith, nth)
    else:
        op_softcap(logits, 0, op["source_stride"], op["multiplier"], op["cap"], count, width, ith, nth)


#: How a first start divides the work of compiling (`native_apart.py`): what a helper does, what is done meanwhile, and
#: what the parameters of those are called in the groups that `walk` takes.
APART = (
    "op_linear_int4", "op_linear_int2", "op_linear_int8", "op_linear_f16", "op_refine_int4", "op_refine_int2",
    "op_quantize", "op_arrange",
)  # fmt: skip
MEANWHILE = ("run_attention", "run_elements")
MEMBERS = {
    "model": ("table", "weights", "permutations", "shape"),
    "space": ("act", "logits", "quads", "xs", "stage", "partials", "work", "wide"),
}


@kernel
def go_on(step, token):
    """Make the step that of the next token of a lone sequence: what `StepArrays` does for a token that Python chose."""
    token_ids, tokens, runs, bounds, cos, sin, next_cos, next_sin = (
        step[1],
        step[3],
        step[4],
        step[7],
        step[8],
        step[9],
        step[11],
        step[12],
    )
    number = tokens[0, NUMBER] + 1
    token_ids[0], tokens[0, NUMBER], tokens[0, FIRST_ROW] = token, number, number
    runs[bounds[0, LAST_RUN] - 1, END] = number + 1
    width = next_cos.shape[0] // ROPE_BLOCK
    begin = number % ROPE_BLOCK * width
    for i in range(width):
        cos[i], sin[i] = next_cos[begin + i], next_sin[begin + i]


@kernel
def walk(model, space, cache, step, layer_kinds, planes, first, last, ahead, times, sync, ith, nth):
    """Rows first .. last - 1 of the table, by thread `ith` of `nth`.

    With `ahead`, the same again for the token that it chose, so many times; all tokens chosen are noted then, and a -1
    ends it. `times`, int64 and as long as the table, gets thread 0's clock behind every row; of length 0 it gets
    nothing.
    """
    table, counts, chosen = model[0], step[0], step[13]
    phase, number, ticket = 0, 0, ith
    for turn in range(ahead + 1):
        for row in range(first, last):
            op = table[row]
            kind = op["kind"]
            count = counts[op["over"]]
            if kind <= REFINE_INT2:
                number, ticket = run_linear(model, space, step, op, count, planes, sync, number, ticket, ith, nth)
            elif kind <= ATTEND_MERGE:
                run_attention(model, space, cache, step, layer_kinds, op, count, ith, nth)
            else:
                run_elements(model, space, step, op, count, ith, nth)
            if op["barrier"]:
                if barrier(sync, nth, phase) != 0:
                    return
                phase += 1
            if ith == 0 and times.shape[0] > 0:
                times[row] = ticks()
        if ahead == 0 or barrier(sync, nth, phase) != 0:
            return
        if ith == 0:
            chosen[turn] = np.int64(space[0][table[last - 1]["out"]])
            if turn < ahead and chosen[turn] >= 0:
                go_on(step, chosen[turn])
        if turn == ahead or barrier(sync, nth, phase + 1) != 0 or chosen[turn] < 0:
            return
        phase += 2
