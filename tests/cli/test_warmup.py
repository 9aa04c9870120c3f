from __future__ import annotations

import json

from edgellm.cli import warmup


def test_all_kernels_are_ready_afterwards(cli, monkeypatch):
    first = json.loads(cli("warmup", "--json").out)
    assert first["isa"]
    second = cli("warmup", "--json")
    facts = json.loads(second.out)
    assert second.code == 0
    assert (facts["compiled"], facts["compile_seconds"]) == (0, 0.0)
    assert second.err == ""
    shown = cli("warmup").out
    assert shown.startswith("nothing to compile: the kernels for ")
    assert facts["folder"] is None or facts["folder"] in shown


def test_the_sentence():
    facts = {"isa": "avx2", "compiled": 62, "compile_seconds": 31.25, "seconds": 32.0, "folder": "~/.cache/jit"}
    assert warmup._sentence(facts) == "compiled 62 kernels for avx2 in 31.2 s; kept in ~/.cache/jit"
    assert warmup._sentence(facts | {"compiled": 1}).startswith("compiled 1 kernel for avx2")


def test_a_place_where_nothing_can_be_kept_is_named(cli, monkeypatch):
    monkeypatch.setattr(warmup, "compile_kernels", lambda: None)
    monkeypatch.setattr(warmup, "found_in", lambda: None)
    done = cli("warmup")
    assert done.code == 0
    assert "nothing can be kept here" in done.out
    assert "EDGELLM_CACHE_DIR" in done.out
