from __future__ import annotations

import json
from dataclasses import replace

import pytest

import edgellm
from edgellm.cli.fit import largest_context


def test_a_small_model_fits(cli, tiny):
    done = cli("fit", tiny)
    assert done.code == 0
    assert "fits" in done.out.splitlines()
    assert "its whole context fits: 32768 tokens" in done.out


def test_json(cli, tiny):
    found = json.loads(cli("fit", tiny, "--json", "--context", "512", "--slots", "3").out)
    assert found["fits"] is True
    assert (found["context"], found["slots"], found["largest_context"]) == (512, 3, 32768)
    assert found["peak_bytes"] >= found["process_bytes"] + found["weights_bytes"] + found["cache_bytes"]


def test_what_does_not_fit_exits_75(cli, tiny, monkeypatch):
    real = edgellm.estimate

    def small(path, *, context, **options):
        found = real(path, context=context, **options)
        return replace(found, available_bytes=1000, fits=context <= 2000)

    monkeypatch.setattr(edgellm, "estimate", small)
    done = cli("fit", tiny)
    assert done.code == 75
    assert "does not fit" in done.out
    assert "largest context that fits: 1792 of 32768 tokens" in done.out
    assert json.loads(cli("fit", tiny, "--json").out)["largest_context"] == 1792


@pytest.mark.parametrize(
    ("limit", "longest", "expected"), [(0, 4096, None), (255, 4096, None), (256, 4096, 256), (1000, 4096, 768)]
)
def test_the_largest_context(limit, longest, expected):
    assert largest_context(lambda tokens: tokens <= limit, longest) == expected


def test_all_of_an_odd_context_counts():
    assert largest_context(lambda tokens: tokens <= 1000, 1000) == 1000
    assert largest_context(lambda tokens: tokens <= 999, 1000) == 768


def test_a_context_the_model_does_not_have(cli, tiny):
    assert cli("fit", tiny, "--context", "100000").code == 2
