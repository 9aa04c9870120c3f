from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from edgellm.cli.bench_profile import by_kind
from edgellm.cli.bench_runs import Measured, Sizes, cache_token_bytes, spread, summary

SMALL = ("--prompt", "20", "--generate", "3", "--depth", "0,8", "--runs", "2", "--context", "64")


def test_json_of_the_reference(cli, tiny):
    done = cli("bench", tiny, "--backend", "reference", *SMALL, "--json")
    facts = json.loads(done.out)
    assert done.code == 0
    assert [entry["tokens"] for entry in facts["prefill"]] == [20]
    assert [(entry["depth"], entry["tokens"]) for entry in facts["decode"]] == [(0, 3), (8, 3)]
    for entry in (*facts["prefill"], *facts["decode"]):
        rates = entry["tokens_per_second"]
        assert 0 < rates["min"] <= rates["median"] <= rates["max"]
    assert facts["first_token"]["seconds"]["min"] > 0
    assert facts["load"]["seconds"] > 0
    assert 0 < facts["resident_memory_bytes"] <= facts["peak_memory_bytes"]
    assert set(map(str, facts["machine_limits"].values())) == {"None", "[]"}
    assert (facts["model"]["context"], facts["backend"], facts["rounds"]) == (64, "reference", 2)
    assert facts["versions"]["numpy"]


def test_text(cli, tiny):
    done = cli("bench", tiny, "--backend", "reference", *SMALL)
    names = [line[:17].rstrip() for line in done.out.splitlines()]
    expected = [
        "load",
        "weights",
        "prefill 20",
        "decode at 0",
        "decode at 8",
        "first token",
        "peak memory",
        "on",
        "versions",
    ]
    assert [name for name in names if name in expected] == expected
    assert "%" not in done.out


def test_what_nobody_asked_for_is_shortened_to_fit(cli, tiny):
    done = cli("bench", tiny, "--backend", "reference", "--context", "40", "--runs", "1", "--json")
    facts = json.loads(done.out)
    assert done.code == 0
    assert [entry["tokens"] for entry in facts["prefill"]] == [39]
    assert [(entry["depth"], entry["tokens"]) for entry in facts["decode"]] == [(0, 38)]
    assert any(note.startswith("depth 2048 is left out") for note in facts["notes"])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--context", "30", "--depth", "40"], "--context"),
        (["--depth", "40000"], "context"),
        (["--depth", "-1"], "--depth"),
        (["--depth", "1,x"], "--depth"),
        (["--runs", "0"], "--runs"),
        (["--prompt", "5,0"], "--prompt"),
        (["--plot", "figures.gif"], "--plot"),
        (["--profile"], "--profile"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_runs(cli, tiny, options, named):
    done = cli("bench", tiny, "--backend", "reference", "--generate", "2", *options)
    assert done.code == 2
    assert named in done.err
    assert done.out == ""


def test_the_cpu_backend_with_shares_and_a_profile(cli, tiny, monkeypatch):
    from edgellm.backends.cpu import measure
    from edgellm.cli import bench_runs

    monkeypatch.setattr(measure, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(bench_runs, "_YARDSTICK_SECONDS", 0.0)
    options = ("--backend", "cpu", "--threads", "2", *SMALL, "--prompt", "20,6", "--profile")
    done = cli("bench", tiny, *options, "--json")
    assert done.err.count("error") == 0
    facts = json.loads(done.out)
    assert facts["isa"]
    assert [entry["tokens"] for entry in facts["prefill"]] == [20, 6]
    assert "peak_share" not in facts["prefill"][0]  # no weight of a layer is quantized
    for entry in facts["decode"]:
        assert 0 < entry["bandwidth_share"] <= entry["sustained_share"]
        assert 0 < entry["read_bytes_per_token"]["weights"] <= facts["model"]["weight_bytes"]
    limits = facts["machine_limits"]
    assert len(limits["read_bytes_per_second_measured"]) == 3  # before two rounds and after each
    assert limits["read_bytes_per_second"] == sorted(limits["read_bytes_per_second_measured"])[1]
    prefill, short, at_0, at_8 = facts["profile"]
    assert [prefill["step"], short["step"], at_8["step"]] == ["prefill of 20", "prefill of 6", "decode at depth 8"]
    kinds = {entry["kind"]: entry for entry in at_0["ops"]}
    assert set(kinds) >= {"call+embed", "linear_f16", "attend", "logits_int8", "rms_norm"}
    assert sum(entry["share"] for entry in at_0["ops"]) == pytest.approx(1)
    weights = kinds["linear_f16"]["bytes"] + kinds["logits_int8"]["bytes"]
    assert weights == facts["decode"][0]["read_bytes_per_token"]["weights"]
    deeper = {entry["kind"]: entry["bytes"] for entry in at_8["ops"]}
    assert deeper["attend"] > kinds["attend"]["bytes"]
    shown = cli("bench", tiny, *options).out
    assert " GB/s, " in shown
    assert "prefill of 20: " in shown
    assert " read a token\n" in shown
    assert " of the bandwidth on average\n" in shown


def test_shares_are_those_of_the_median_in_what_the_machine_can_do(tiny):
    from edgellm.model import open_model

    with open_model(tiny) as opened:
        config = opened.config
    work = {"weight_bytes": 10_000, "integer_operations": 500}
    llm = SimpleNamespace(info={"work": work, "cache_dtype": "float16"}, config=config)
    rates = {16: [10.0, 30.0, 20.0]}, {4: [8.0, 7.0, 9.0]}
    measured = Measured(*rates, [0.5], [1e5, 4e5, 9e5], [1e5, 2e5, 8e5], [1e4, 2e4], 99)
    found = summary(llm, Sizes((16,), 2, (4,), 3), measured)
    assert found["prefill"][0]["peak_share"] == 500 * 20 / 2e4
    cache = found["decode"][0]["read_bytes_per_token"]["cache"]
    assert (
        cache == 2 * 2 * 2 * 8 * 2 * 6
    )  # layers, keys and values, heads, elements, bytes, 4 + 2 / 2 tokens and itself
    assert found["decode"][0]["bandwidth_share"] == (10_000 + cache) * 8 / 4e5
    assert found["decode"][0]["sustained_share"] == (10_000 + cache) * 8 / 2e5
    assert found["prefill"][0]["tokens_per_second"] == {"median": 20, "min": 10, "max": 30}


def test_bytes_of_the_cache(tiny):
    from edgellm.model import open_model

    with open_model(tiny) as opened:
        config = replace(opened.config, layer_windows=(None, 4))
    assert cache_token_bytes(config, "float32", 9) == 2 * 2 * 8 * 4 * (10 + 4)
    assert cache_token_bytes(config, "int8", 1) == 2 * 2 * (8 + 4) * (2 + 2)


def test_sizes_and_sums():
    assert Sizes((512,), 64, (0, 2048), 3).context == 2048 + 64 + 1
    assert Sizes((512, 4096), 64, (0, 2048), 3).context == 4096 + 1
    assert Sizes((2,), 1, (0,), 3).context == 17
    assert spread(iter([3, 1, 2])) == {"median": 2, "min": 1, "max": 3}


def test_a_profile_sums_the_medians_of_rows():
    def step(*rows: tuple[str, float, int]) -> list[SimpleNamespace]:
        return [SimpleNamespace(kind=kind, seconds=seconds, nbytes=nbytes) for kind, seconds, nbytes in rows]

    quiet = step(("a", 1, 8), ("b", 5, 0), ("a", 1, 8))
    found = by_kind([quiet, step(("a", 99, 10), ("b", 6, 0), ("a", 2, 8)), quiet])
    assert [entry["kind"] for entry in found] == ["b", "a"]
    assert found[1] == {"kind": "a", "rows": 2, "seconds": 2, "share": 2 / 7, "bytes": 16}
