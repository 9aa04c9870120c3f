"""`edgellm eval`."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "held-out.txt"
    path.write_text("the cat sat on the tree and then the dog ran under a house\n" * 4)
    return path


def test_figures_as_lines(cli, tiny, text):
    done = cli("eval", tiny, text, "--backend", "reference", "--window", "16")
    assert done.code == 0, done.err
    assert "perplexity" in done.out
    assert "bits per byte" in done.out
    assert "window          16, stride 15" in done.out
    assert "against" not in done.out


def test_against_itself_as_json(cli, tiny, bare, text):
    options = ("--backend", "reference", "--window", "16", "--stride", "8", "--json")
    done = cli("eval", tiny, text, "--against", bare, *options)
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert (facts["stride"], facts["excluded"], facts["against"]["kl_max"]) == (8, 0, 0.0)
    assert facts["against"]["top1_agreement"] == 1.0
    assert facts["bytes"] == text.stat().st_size
    alone = json.loads(cli("eval", tiny, text, *options).out)
    assert alone["nll_per_token"] == facts["nll_per_token"] == facts["against"]["nll_per_token"]


def test_what_cannot_be(cli, tiny, text, tmp_path):
    assert cli("eval", tiny, tmp_path / "none.txt").code == 66
    done = cli("eval", tiny, text, "--backend", "reference", "--window", "16", "--stride", "16")
    assert (done.code, "1 to 15" in done.err) == (2, True)
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    done = cli("eval", tiny, empty, "--backend", "reference")
    assert (done.code, "nothing to predict" in done.err) == (2, True)
