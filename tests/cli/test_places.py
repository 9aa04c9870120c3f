from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgellm import folders
from edgellm.cli import places
from edgellm.cli.find_model import find_model, is_model, known_models
from edgellm.errors import InputError

linux = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="XDG is Linux's")


@pytest.fixture
def home(environment) -> Path:
    return Path(environment["HOME"])


@linux
def test_folders_follow_xdg(home, monkeypatch):
    assert folders.folder("state") == home / ".local/state/edgellm"
    monkeypatch.setenv("XDG_STATE_HOME", "/elsewhere")
    assert folders.folder("state") == Path("/elsewhere/edgellm")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert folders.folder("state") == home / ".local/state/edgellm"


def test_our_own_variable_wins(home, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", "/elsewhere")
    monkeypatch.setenv("EDGELLM_STATE_DIR", str(tmp_path))
    assert folders.folder("state") == tmp_path


@linux
def test_without_a_home_there_is_no_folder(monkeypatch):
    monkeypatch.setattr("os.path.expanduser", lambda text: text)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("EDGELLM_CACHE_DIR", raising=False)
    assert folders.folder("cache") is None


def test_home_is_written_short(home):
    assert places.short(home / "a") == str(Path("~/a"))
    assert places.short(str(home) + "other") == str(home) + "other"


@pytest.fixture
def shelf(home, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "shelf"
    (folder / "storyteller").mkdir(parents=True)
    (folder / "single.safetensors").write_bytes(b"")
    monkeypatch.setenv("EDGELLM_MODELS", str(folder))
    monkeypatch.chdir(home)
    return folder


def test_names_are_looked_up(shelf):
    assert find_model("storyteller") == str(shelf / "storyteller")
    assert find_model("single") == str(shelf / "single.safetensors")
    assert find_model(None) is None
    assert find_model("guide") is None
    assert set(known_models()) == {"storyteller", "single", "single.safetensors"}


def test_a_path_wins_over_a_name(shelf):
    Path("storyteller").mkdir()
    assert find_model("storyteller") == "storyteller"


def test_an_unknown_name_says_what_was_meant_and_where_was_looked(shelf):
    with pytest.raises(InputError) as error:
        find_model("storyteler")
    assert "Did you mean storyteller?" in str(error.value)
    assert "shelf" in str(error.value)


@pytest.mark.parametrize("name", ["no/such", "model.gguf", "https://host/model", "x.safetensors"])
def test_what_looks_like_a_path_is_left_to_the_opener(shelf, name):
    assert find_model(name) == name
    assert is_model(name)


@pytest.mark.parametrize("text", ["hello", "What is 1/2 of 4?", "Tell me a story.", "x" * 5000, "a\nb/c", "nul\0"])
def test_a_prompt_is_not_a_model(shelf, text):
    assert not is_model(text)


def test_known_names_are_models(shelf):
    assert is_model("storyteller")
    assert is_model("guide")
