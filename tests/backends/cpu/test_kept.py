"""Packed weights that are kept: the same bytes at the next start, packed anew where anything about them is doubtful."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgellm.backends.cpu import kept, mapped, packed_plan
from edgellm.backends.cpu.packed import PackedWeights
from edgellm.errors import OutputError
from edgellm.formats.writer import partial_name
from edgellm.model import fuse, open_model
from tests.backends.cpu.test_packed import synthetic


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGELLM_KEEP_PACKED", raising=False)
    monkeypatch.setattr(kept, "MIN_RATE", 0)  # a small file takes a disk as long as a large one
    return tmp_path / "cache" / "packed"


def load(folder: Path, head: str = "int8", progress=None) -> PackedWeights:
    """Load, and wait for what is written behind it."""
    with open_model(folder) as model:
        packed = kept.load_packed(fuse(model.weights.program), model.weights, head, progress, 2, min_bytes=1)
    for thread in threading.enumerate():
        if thread.name == "edgellm-keep":
            thread.join()
    return packed


def files(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*.safetensors"))


def refuse(*_: object) -> None:
    raise AssertionError("packed although it was kept")


def same(one: PackedWeights, other: PackedWeights) -> bool:
    assert one.linears.keys() == other.linears.keys()
    assert one.vectors == other.vectors
    for name, linear in one.linears.items():
        twin = other.linears[name]
        facts = [(x.layout, x.offset, x.factor, x.bias) for x in (linear, twin)]
        assert facts[0] == facts[1]
        assert np.array_equal(
            *(np.zeros(0) if x.permutation is None else x.permutation for x in (linear, twin)), equal_nan=False
        )
    return np.array_equal(one.data[: one.nbytes], other.data[: other.nbytes])


@pytest.mark.parametrize("large_pages", [False, True])
@pytest.mark.parametrize("storage", ["gptq", "gptq act-order", "awq"])
def test_next_start_takes_the_same_bytes(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str, large_pages: bool
) -> None:
    monkeypatch.setattr(mapped, "_large_bytes", lambda address: (1 << 40) * large_pages)
    monkeypatch.setattr(packed_plan, "SLICED_FROM", 1)
    folder = synthetic(tmp_path, storage, model_type="qwen2")
    packed = load(folder)
    assert packed.linears["lm_head"].layout.rest
    assert len(files(cache)) == 1
    assert (cache.stat().st_mode & 0o077) == 0
    monkeypatch.setattr(kept, "pack_weights", refuse)
    told: list[tuple[int, int]] = []
    again = load(folder, progress=lambda done, total: told.append((done, total)))
    assert same(packed, again)
    assert again.data.flags.writeable
    assert told[-1][0] == told[-1][1] == packed.nbytes


def test_another_model_or_another_head_is_another_file(cache: Path, tmp_path: Path) -> None:
    folder = synthetic(tmp_path)
    load(folder)
    load(folder, head="int4")
    assert len(files(cache)) == 2
    stored = folder / "model.safetensors"
    os.utime(stored, ns=(1, 1))  # touched: may have been changed between the samples of the fingerprint
    load(folder)
    assert len(files(cache)) == 3


@pytest.mark.parametrize("damage", ["byte", "end", "empty", "words"])
def test_damage_is_said_and_packed_anew(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    folder = synthetic(tmp_path)
    packed = load(folder)
    (name,) = files(cache)
    data = bytearray((cache / name).read_bytes())
    if damage == "byte":
        data[len(data) // 2] ^= 1
    elif damage == "words":
        data = data.replace(b'\\"vectors\\"', b'\\"vectorz\\"')
    (cache / name).write_bytes(data[: -64 if damage == "end" else 0 if damage == "empty" else None])
    with caplog.at_level(logging.WARNING, "edgellm"):
        assert same(packed, load(folder))
    assert "damaged" in caplog.text
    caplog.clear()
    assert same(packed, load(folder))
    assert not caplog.text


def test_small_models_and_those_who_say_no_keep_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = synthetic(tmp_path)
    with open_model(folder) as model:
        kept.load_packed(fuse(model.weights.program), model.weights)
    monkeypatch.setenv("EDGELLM_KEEP_PACKED", "0")
    load(folder)
    assert not cache.exists()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="folders have no modes on Windows")
def test_a_folder_that_others_can_write_to_is_not_used(cache: Path, tmp_path: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    load(synthetic(tmp_path))
    assert not files(cache)


def test_a_slow_or_full_disk_is_left_alone_for_a_day(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = synthetic(tmp_path)
    writes: list[Path] = []
    write = kept.write_kept

    def counted(path: Path, packed: PackedWeights) -> None:
        writes.append(path)
        write(path, packed)

    monkeypatch.setattr(kept, "write_kept", counted)
    monkeypatch.setattr(kept, "MIN_RATE", float("inf"))
    load(folder)
    load(folder)
    assert len(writes) == 1
    assert not files(cache)
    (tried,) = cache.glob("*.tried")
    os.utime(tried, (time.time() - kept.RETRY_SECONDS - 1,) * 2)

    def full(path: Path, packed: PackedWeights) -> None:
        writes.append(path)
        raise OutputError("not enough space on the disk", file=path)

    monkeypatch.setattr(kept, "write_kept", full)
    load(folder)
    assert len(writes) == 2
    assert not files(cache)


def test_the_end_of_a_process_waits_for_the_file_and_leaves_no_half_of_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    goes_on, at_exit = threading.Event(), []
    write = kept.write_kept

    def slow(path: Path, packed: PackedWeights) -> None:
        partial_name(path).write_bytes(b"half")
        goes_on.wait(60)
        write(path, packed)

    def register(*call: object) -> None:
        at_exit.append(call)

    monkeypatch.setattr(kept, "write_kept", slow)
    monkeypatch.setattr(kept, "_SILENT_SECONDS", 0.01)
    monkeypatch.setattr(kept.atexit, "register", register)
    with open_model(synthetic(tmp_path)) as model:
        kept.load_packed(fuse(model.weights.program), model.weights, min_bytes=1)
    ((finish, keeper, path, seconds),) = at_exit
    assert seconds >= kept._EXIT_SECONDS
    while not partial_name(path).exists():
        time.sleep(0.01)
    finish(keeper, path, 0.01)
    assert "Ctrl-C leaves it" in caplog.text
    assert not partial_name(path).exists()
    goes_on.set()
    finish(keeper, path, 60)
    assert files(cache) == [path.name]


def test_old_files_make_room(cache: Path, tmp_path: Path) -> None:
    cache.mkdir(parents=True, mode=0o700)
    now = time.time()
    for age in range(1, kept.KEPT_FILES + 2):
        path = cache / f"{age}.safetensors"
        path.touch()
        os.utime(path, (now - age * 60,) * 2)
    unfinished = cache / "x.safetensors.partial-1"
    unfinished.touch()
    os.utime(unfinished, (now - 86400,) * 2)
    load(synthetic(tmp_path))
    left = files(cache)
    assert len(left) == kept.KEPT_FILES
    assert not unfinished.exists()
    assert set(left) >= {f"{age}.safetensors" for age in range(1, kept.KEPT_FILES)}
    kept._prune(cache, 1 << 60)  # more than a share of any disk
    assert not files(cache)
