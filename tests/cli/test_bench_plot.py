from __future__ import annotations

import pytest

from edgellm.cli import bench_plot
from edgellm.errors import OutputError, UsageError

SMALL = ("--prompt", "6", "--generate", "2", "--depth", "0", "--runs", "1", "--context", "32")


def facts(**changes: object) -> dict[str, object]:
    """What `edgellm bench` found for a model on a machine."""

    def rates(median: float) -> dict[str, float]:
        return {"median": median, "min": 0.9 * median, "max": 1.1 * median}

    def step(name: str, *kinds: tuple[str, float]) -> dict[str, object]:
        return {"step": name, "ops": [{"kind": k, "share": s, "seconds": s / 20} for k, s in kinds]}

    many = [(f"kind{number}", 0.1) for number in range(8)]
    return {
        "model": {"path": "~/q05", "weight_bytes": 324_000_000, "lm_head": "int8"},
        "backend": "cpu",
        "isa": "avx512vnni",
        "threads": 2,
        "rounds": 3,
        "machine": {"processor": "a processor"},
        "machine_limits": {"read_bytes_per_second": 36e9, "integer_operations_per_second": 900e9},
        "decode": [
            {
                "depth": depth,
                "tokens_per_second": rates(90 - depth / 100),
                "read_bytes_per_token": {"weights": 324_000_000, "cache": 12_000 * depth},
                "bandwidth_share": 0.8,
            }
            for depth in (8192, 0, 2048)
        ],
        "prefill": [
            {"tokens": n, "tokens_per_second": rates(800), "operations_per_token": 700_000_000, "peak_share": 0.6}
            for n in (512, 4096)
        ],
        "profile": [
            step("prefill of 512", ("linear_int4", 0.7), ("attend", 0.3)),
            step("decode at depth 0", ("linear_int4", 0.97), ("tiny", 0.03)),
            step("decode at depth 8192", *many, ("tiny", 0.2)),
        ],
        **changes,
    }


@pytest.fixture
def drawn(monkeypatch) -> list:
    """Figures that were made, and not written."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


@pytest.mark.parametrize("name", ["figures.png", "figures.svg"])
def test_a_picture_is_drawn(tmp_path, name):
    pytest.importorskip("matplotlib")
    bench_plot.plot(facts(), str(tmp_path / name))
    data = (tmp_path / name).read_bytes()
    assert data.startswith(b"\x89PNG") if name.endswith("png") else b"<svg" in data
    assert len(data) > 20_000


def test_what_the_picture_says(drawn):
    bench_plot.plot(facts(), "x.svg")
    decode, prefill, profile = drawn[0].axes
    limit, measured = decode.get_lines()[:2]
    assert list(measured.get_xdata()) == [0, 2048, 8192]
    assert limit.get_ydata()[0] == pytest.approx(36e9 / 324e6)
    assert limit.get_ydata()[2] == pytest.approx(36e9 / (324e6 + 12_000 * 8192))
    assert prefill.get_lines()[0].get_ydata()[0] == pytest.approx(900e9 / 700e6)
    heights = [bar.get_height() for bar in profile.patches]
    assert sum(heights) == pytest.approx(300)  # three steps, of a hundred percent each
    labels = [text.get_text() for text in profile.get_legend().get_texts()]
    assert (labels[0], labels[-1]) == ("other", "linear_int4")
    assert len({bar.get_facecolor() for bar in profile.patches}) == len(labels) == 8
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in (decode, prefill))
    assert "lm_head int8" in drawn[0].get_suptitle()


def test_a_backend_without_limits_and_profile(drawn):
    rates = {"median": 5.0, "min": 4.0, "max": 6.0}
    limits = {"read_bytes_per_second": None, "integer_operations_per_second": None}
    decode, prefill = [{"depth": 0, "tokens_per_second": rates}], [{"tokens": 9, "tokens_per_second": rates}]
    bench_plot.plot(facts(machine_limits=limits, decode=decode, prefill=prefill, profile=[]), "x.svg")
    assert [len(axes.get_legend().get_texts()) for axes in drawn[0].axes] == [1, 1]


def test_the_command_draws(cli, tiny, tmp_path):
    pytest.importorskip("matplotlib")
    done = cli("bench", tiny, "--backend", "reference", *SMALL, "--plot", tmp_path / "figures.svg")
    assert done.code == 0
    assert "drawn: " in done.err
    assert b"<svg" in (tmp_path / "figures.svg").read_bytes()


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_plot, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"--plot: drawing needs.*edgellm\[plot\]"):
        bench_plot.require(str(tmp_path / "figures.png"))


def test_a_folder_that_is_not_there(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(OutputError, match="no folder that can be written"):
        bench_plot.require(str(tmp_path / "none" / "figures.png"))
    with pytest.raises(OutputError, match="cannot be written"):
        bench_plot.plot(facts(), str(tmp_path / "none" / "figures.png"))
