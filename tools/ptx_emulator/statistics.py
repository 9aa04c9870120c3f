"""What a kernel does, counted while it runs: instructions, bytes, sectors of global memory, banks of shared memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from tools.ptx_emulator.access import Access
from tools.ptx_emulator.frame import WARP, Active, Frame
from tools.ptx_emulator.syntax import Instruction

SECTOR = 32
BANKS = 32


@dataclass
class Traffic:
    """Accesses of one kind, or of one line.

    Attributes:
        requests: warps' accesses.
        bytes: what their threads asked for.
        sectors: 32-byte sectors of global memory that the requests touch, each request's for itself.
        wavefronts: passes over shared memory's 32 banks that the requests take; `ideal` without any conflict.
    """

    requests: int = 0
    bytes: int = 0
    sectors: int = 0
    wavefronts: int = 0
    ideal: int = 0

    @property
    def sectors_a_request(self) -> float:
        return self.sectors / self.requests if self.requests else 0.0

    @property
    def efficiency(self) -> float:
        """The share of the touched sectors' bytes that was asked for; above 1 where lanes share bytes."""
        return self.bytes / (SECTOR * self.sectors) if self.sectors else 0.0

    @property
    def conflicts(self) -> int:
        """Wavefronts more than needed."""
        return self.wavefronts - self.ideal


@dataclass
class Statistics:
    """Counts of one entry over all its launches.

    Attributes:
        launches: how many.
        instructions: by opcode (its first word), executed by threads.
        warp_instructions: the same, executed by warps; a warp that has diverged counts for each of its parts.
        traffic: by ("global" | "shared", "load" | "store").
        lines: the same by line of the PTX, with the instruction's text.
        touched: bytes of the sectors of global memory loaded and stored, each counted once a launch: what must pass
            between chip and memory at the least.
    """

    launches: int = 0
    instructions: Counter[str] = field(default_factory=Counter)
    warp_instructions: Counter[str] = field(default_factory=Counter)
    traffic: dict[tuple[str, str], Traffic] = field(default_factory=dict)
    lines: dict[int, tuple[str, Traffic]] = field(default_factory=dict)
    touched: Counter[str] = field(default_factory=Counter)
    _sectors: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def of(self, space: str, way: str) -> Traffic:
        """The traffic of that kind; zeros where there was none."""
        return self.traffic.get((space, way), Traffic())

    # ---------------------------------------------------------------- counting
    def executed(self, ins: Instruction, active: Active) -> None:
        self.instructions[ins.root] += active.count
        self.warp_instructions[ins.root] += int(active.mask.reshape(-1, WARP).any(1).sum())

    def reached_global(self, access: Access, addresses: np.ndarray, lanes: slice | np.ndarray, frame: Frame) -> None:
        """A checked access to global memory."""
        rows = _by_warp(addresses, lanes, frame)
        first, last = rows // SECTOR, (rows + access.width - 1) // SECTOR
        sectors = np.concatenate([first, last], axis=1)
        sectors[np.concatenate([rows, rows], axis=1) < 0] = -1
        one = Traffic(len(rows), addresses.size * access.width, int(_distinct(sectors).sum()))
        self._add("global", access, one)
        self._sectors.setdefault(_way(access), []).append(np.unique(sectors[sectors >= 0]))

    def reached_shared(self, access: Access, addresses: np.ndarray, lanes: slice | np.ndarray, frame: Frame) -> None:
        """A checked access to shared memory; `addresses` are bytes in the block's."""
        rows = _by_warp(addresses, lanes, frame)
        words = max(1, access.width // 4)
        # 8-byte accesses are served by half warps, 16-byte ones by quarters.
        phases = rows.reshape(-1, WARP // words)
        phases = phases[(phases >= 0).any(1)]
        numbers = np.where(phases[:, :, None] < 0, -1, phases[:, :, None] // 4 + np.arange(words))
        wavefronts = _passes(numbers.reshape(len(phases), -1))
        one = Traffic(len(rows), addresses.size * access.width, 0, int(wavefronts.sum()), len(phases))
        self._add("shared", access, one)

    def launched(self) -> None:
        """One launch is over."""
        self.launches += 1
        for way, parts in self._sectors.items():
            self.touched[way] += SECTOR * np.unique(np.concatenate(parts)).size
        self._sectors.clear()

    def _add(self, space: str, access: Access, one: Traffic) -> None:
        whole = self.traffic.setdefault((space, _way(access)), Traffic())
        _, line = self.lines.setdefault(access.ins.line, (access.ins.text, Traffic()))
        for total in (whole, line):
            total.requests += one.requests
            total.bytes += one.bytes
            total.sectors += one.sectors
            total.wavefronts += one.wavefronts
            total.ideal += one.ideal


def _way(access: Access) -> str:
    return "store" if access.writes else "load"


def _by_warp(addresses: np.ndarray, lanes: slice | np.ndarray, frame: Frame) -> np.ndarray:
    """[warps that take part, 32] addresses, -1 for lanes that do not."""
    rows = np.full(frame.threads, -1, np.int64)
    rows[lanes] = addresses
    rows = rows.reshape(-1, WARP)
    return rows[(rows >= 0).any(1)]


def _distinct(rows: np.ndarray) -> np.ndarray:
    """How many different numbers, -1 aside, each row has."""
    ordered = np.sort(rows, axis=1)
    fresh = np.ones(ordered.shape, bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return (fresh & (ordered >= 0)).sum(1)


def _passes(words: np.ndarray) -> np.ndarray:
    """Passes that each row of word numbers takes: the most different words in one bank."""
    ordered = np.sort(words, axis=1)
    fresh = ordered >= 0
    fresh[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    counts = np.zeros((len(words), BANKS), np.int64)
    row, column = np.nonzero(fresh)
    np.add.at(counts, (row, ordered[row, column] % BANKS), 1)
    return counts.max(1)
