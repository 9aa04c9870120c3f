"""Files mapped from the system's cache: the right bytes while the array lives; None wherever that cannot be."""

from __future__ import annotations

import gc
import io
import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from edgellm.backends.cpu import mapped
from edgellm.backends.cpu.mapped import in_large_pages, map_file

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not tell of pages")
BYTES = np.random.default_rng(4).integers(0, 256, 10_000).astype(np.uint8)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "packed"
    path.write_bytes(BYTES.tobytes())
    return path


def test_the_bytes_live_as_long_as_the_array(file: Path) -> None:
    found = map_file(file, 100, 9_000)
    file.unlink()
    gc.collect()
    part = found[50:]
    del found
    gc.collect()
    assert (part.dtype, part.flags.writeable) == (np.uint8, True)
    assert np.array_equal(part, BYTES[150:9_100])


@pytest.mark.parametrize(("begin", "nbytes"), [(0, 10_001), (9_999, 2), (0, 0)])
def test_a_file_that_ends_before_is_not_mapped(begin: int, nbytes: int, file: Path) -> None:
    assert map_file(file, begin, nbytes) is None
    assert map_file(file, 9_999, 1) == BYTES[-1]


def test_a_quarter_in_large_pages_is_enough(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(mapped, "_large_bytes", lambda address: asked.append(address) or 2_000)
    assert not in_large_pages(map_file(file, 0, 10_000), 0)
    found = map_file(file, 64, 8_000)
    assert in_large_pages(found, 64)
    assert asked[-1] == found.ctypes.data - 64
    assert asked[-1] % mmap.PAGESIZE == 0


def test_a_system_that_maps_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no such device")

    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", refuse)
        assert map_file(file, 0, 100) is None
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        assert map_file(file, 0, 100) is None
    assert map_file(file, 0, 100) is not None


SMAPS = """
7f0000000000-7f0000001000 r--s 00000000 08:01 12 /other
FilePmdMapped:      4096 kB
VmFlags: rd
7f1200000000-7f1200400000 r--s 00000000 08:01 12 /packed
Size:               4096 kB
{line}VmFlags: rd
7f1300000000-7f1300400000 r--s 00000000 08:01 12 /next
FilePmdMapped:      8192 kB
"""


@pytest.mark.parametrize(
    ("line", "nbytes"),
    [
        ("FilePmdMapped:      2048 kB\n", 2 << 20),
        ("FilePmdMapped:         0 kB\n", 0),
        ("", 0),
        ("FilePmdMapped: ? kB\n", 0),
    ],
)
def test_what_the_system_says_of_a_mapping(line: str, nbytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "open", lambda path: io.StringIO(SMAPS.format(line=line)), raising=False)
    assert mapped._large_bytes(0x7F1200000000) == nbytes
    assert mapped._large_bytes(0x7F1400000000) == 0


def test_a_system_that_says_nothing_of_mappings(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr(mapped, "open", missing, raising=False)
    assert mapped._large_bytes(0x7F1200000000) == 0
