"""Which of the teacher's layers and channels a student's are, where nobody says it."""

from __future__ import annotations

import numpy as np

from edgellm.convert.distill.reduce import Model

_LEAST_COSINE = 0.99


def match_channels(student: Model, teacher: Model) -> np.ndarray | None:
    """The teacher's hidden channel of each of the student's, int64 [hidden_size]; None where that cannot be seen.

    Equal hidden sizes are the same channels; else the columns of the embeddings must be near parallel, one to one.
    """
    narrow, wide = student.parameters["embed_tokens"], teacher.parameters["embed_tokens"]
    if narrow.shape == wide.shape:
        return np.arange(narrow.shape[1])
    if narrow.shape[0] != wide.shape[0]:
        return None
    cosines = _unit(narrow).T @ _unit(wide)
    best = cosines.argmax(axis=1)
    sure = cosines[np.arange(len(best)), best] > _LEAST_COSINE
    return best if sure.all() and len(set(best.tolist())) == len(best) else None


def match_layers(student: Model, teacher: Model, channels: np.ndarray) -> tuple[int, ...] | None:
    """The teacher's layer of each of the student's, ascending; None where no weights can be compared.

    Each pair is compared by the cosine of those linears that have as many rows in both; the best ascending assignment
    is found by dynamic programming.
    """
    count, of = student.program.config.num_hidden_layers, teacher.program.config.num_hidden_layers
    if count == of:
        return tuple(range(of))
    if count > of:
        return None
    likeness = np.array([[_likeness(student, s, teacher, t, channels) for t in range(of)] for s in range(count)])
    if not np.isfinite(likeness).all():
        return None
    best = np.full((count + 1, of + 1), -np.inf)  # of the first s layers within the teacher's first t
    best[0] = 0
    for s in range(1, count + 1):
        for t in range(s, of + 1):
            best[s, t] = max(best[s, t - 1], best[s - 1, t - 1] + likeness[s - 1, t - 1])
    found, t = [], of
    for s in range(count, 0, -1):
        while best[s, t] == best[s, t - 1]:
            t -= 1
        t -= 1
        found.append(t)
    return tuple(reversed(found))


def _likeness(student: Model, s: int, teacher: Model, t: int, channels: np.ndarray) -> float:
    """The mean cosine of the linears that read the residual stream and have equal rows; NaN where none has."""
    cosines = []
    for op in student.program.ops:
        if op.layer != s or op.kind != "linear" or op.inputs[0] not in ("x", "h"):
            continue
        for name in op.weights:
            mine = student.parameters[name]
            theirs = teacher.parameters[name.replace(f"layers.{s}.", f"layers.{t}.", 1)]
            if len(mine) == len(theirs):
                theirs = theirs[:, channels]
                cosines.append(float(np.vdot(mine, theirs) / (np.linalg.norm(mine) * np.linalg.norm(theirs) + 1e-30)))
    return float(np.mean(cosines)) if cosines else float("nan")


def _unit(columns: np.ndarray) -> np.ndarray:
    return columns / (np.linalg.norm(columns, axis=0, keepdims=True) + np.float32(1e-30))
