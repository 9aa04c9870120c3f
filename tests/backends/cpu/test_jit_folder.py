"""Where compiled kernels lie, whom the folders must belong to, and what is removed."""

from __future__ import annotations

import logging
import os
import stat
import sys
import time
from pathlib import Path

import pytest

from edgellm import folders as user_folders
from edgellm.backends.cpu import jit_folder
from edgellm.backends.cpu.jit_digest import DIGEST_LENGTH, digest
from edgellm.backends.cpu.jit_folder import CacheFolders, user_roots
from edgellm.folders import require_trusted

posix_only = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners and modes are those of POSIX")
DAY = 86400


@pytest.fixture
def no_places(monkeypatch):
    """An environment that names no folder."""
    for name in ("EDGELLM_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


def old_folder(root: Path, number: int, age: float) -> Path:
    folder = root / f"{number:0{DIGEST_LENGTH}x}"
    folder.mkdir(parents=True)
    (folder / "kernel.nbc").write_bytes(b"x")
    os.utime(folder, (time.time() - age,) * 2)
    return folder


@posix_only
def test_places(no_places, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HOME", "/home/ann")
    temporary = Path(f"/tmp/edgellm-jit-{os.geteuid()}")
    assert user_roots() == [Path("/home/ann/.cache/edgellm/jit"), temporary]
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert user_roots()[0] == Path("/x/edgellm/jit")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert user_roots()[0] == Path("/home/ann/.cache/edgellm/jit")
    monkeypatch.setenv("EDGELLM_CACHE_DIR", "relative")
    assert user_roots()[0] == Path("/home/ann/.cache/edgellm/jit")
    monkeypatch.setenv("EDGELLM_CACHE_DIR", "/own")
    assert user_roots()[0] == Path("/own/jit")
    monkeypatch.delenv("EDGELLM_CACHE_DIR")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert user_roots()[0] == Path("/home/ann/Library/Caches/edgellm/jit")
    monkeypatch.setenv("HOME", "relative")
    assert user_roots() == [temporary]


@posix_only
def test_places_on_windows(no_places, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert user_roots()[0] == Path("/local/edgellm/jit")


def test_nothing_is_created_by_looking(tmp_path):
    folders = CacheFolders([tmp_path / "a" / "jit"])
    assert folders.readable() == []
    assert list(tmp_path.iterdir()) == []
    folder = folders.writable()
    assert folder == tmp_path / "a" / "jit" / digest()
    assert folder.is_dir()
    assert folders.readable() == [folder]


@posix_only
@pytest.mark.parametrize("spoil", ["mode", "link", "owner", "file"])
def test_untrusted_folders_are_refused(spoil, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "edgellm")
    root, other = tmp_path / "jit", tmp_path / "other" / "jit"
    (root / digest()).mkdir(parents=True, mode=0o700)
    if spoil == "mode":
        (root / digest()).chmod(0o770)
    elif spoil == "link":
        root.rename(tmp_path / "elsewhere")
        root.symlink_to(tmp_path / "elsewhere")
    elif spoil == "file":
        (root / digest()).rmdir()
        (root / digest()).touch()
    else:
        monkeypatch.setattr(user_folders, "require_trusted", only_trusting(other))
    folders = CacheFolders([root, other])
    assert folders.readable() == []
    for _ in range(2):
        folder = folders.writable()
        assert folder == other / digest()
        folders.written(folder)
    assert [str(root) in record.message for record in caplog.records] == [True]


def only_trusting(trusted: Path):
    def check(found: os.stat_result, path: Path) -> None:
        if not path.is_relative_to(trusted):
            raise user_folders.Untrusted(f"{path} belongs to another user (uid 7)")

    return check


@posix_only
def test_owners(tmp_path, monkeypatch):
    found = tmp_path.stat()
    values = list(found)
    values[stat.ST_MODE] = stat.S_IFDIR | 0o755
    for owner, user, trusted in ((5, 5, True), (0, 5, True), (6, 5, False), (5, 0, False)):
        values[stat.ST_UID] = owner
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        if trusted:
            require_trusted(os.stat_result(values), tmp_path)
        else:
            with pytest.raises(user_folders.Untrusted, match="another user"):
                require_trusted(os.stat_result(values), tmp_path)


@posix_only
def test_root_leaves_nothing_in_a_users_home(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    home = tmp_path / "home"
    home.mkdir()
    real = Path.stat
    owned = os.stat_result([*list(home.stat())[: stat.ST_UID], 1000, *list(home.stat())[stat.ST_UID + 1 :]])
    monkeypatch.setattr(Path, "stat", lambda path, **kw: owned if path == home else real(path, **kw))
    folders = CacheFolders([home / ".cache" / "edgellm" / "jit"])
    assert folders.writable() is None
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("failing", ["mkdir", "makedirs"])
def test_what_cannot_be_created_is_said_once(failing, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "edgellm")

    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, failing, refuse)
    folders = CacheFolders([tmp_path / "a" / "jit"])
    assert folders.writable() is None
    assert folders.writable() is None
    assert len(caplog.records) == 1
    assert "Read-only file system" in caplog.text


def test_no_place_is_said_once(caplog):
    caplog.set_level(logging.WARNING, "edgellm")
    folders = CacheFolders([])
    assert folders.readable() == []
    assert folders.writable() is None
    assert folders.writable() is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_old_digests_are_removed(tmp_path):
    root = tmp_path / "jit"
    recent = [old_folder(root, number, age=number * 3600.0) for number in range(1, 13)]
    in_use = [old_folder(root, 100 + number, age=60.0) for number in range(jit_folder.KEPT_DIGESTS)]
    ancient = old_folder(root, 999, age=31 * DAY)
    stranger = root / "notes"
    stranger.mkdir()
    leftover = root / ".removed-1"
    leftover.mkdir()
    unfinished = recent[0] / f"kernel.nbc{jit_folder.WRITING}1"
    for file, age in ((unfinished, DAY), (in_use[0] / f"kernel.nbc{jit_folder.WRITING}2", 0)):
        file.touch()
        os.utime(file, (time.time() - age,) * 2)
    for folder in [*recent, *in_use]:
        os.utime(folder, (folder.stat().st_atime,) * 2)
    root.chmod(0o700)
    made = CacheFolders([root]).writable()
    left = set(root.iterdir())
    assert {made, stranger, *in_use} <= left
    assert not {ancient, leftover, *recent} & left
    assert len(list(in_use[0].iterdir())) == 2


def test_a_few_old_digests_stay(tmp_path):
    root = tmp_path / "jit"
    kept = [old_folder(root, number, age=number * DAY) for number in range(1, jit_folder.KEPT_DIGESTS + 1)]
    unfinished = kept[0] / f"kernel.nbc{jit_folder.WRITING}1"
    unfinished.touch()
    os.utime(unfinished, (time.time() - DAY,) * 2)
    os.utime(kept[0], (time.time() - DAY,) * 2)
    root.chmod(0o700)
    made = CacheFolders([root]).writable()
    assert set(root.iterdir()) == {made, *kept}
    assert not unfinished.exists()
    assert (kept[0] / "kernel.nbc").exists()


def test_use_is_noted(tmp_path):
    folders = CacheFolders([tmp_path / "jit"])
    folder = folders.writable()
    os.utime(folder, (time.time() - 2 * DAY,) * 2)
    CacheFolders([tmp_path / "jit"]).readable()
    assert time.time() - folder.stat().st_mtime < 60
