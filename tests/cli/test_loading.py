from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from edgellm.cli import loading
from edgellm.cli.figures import count, rate, size, statistics
from edgellm.cli.loading import LoadingBar, start_line
from edgellm.cli.terminal import Terminal


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(loading, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    monkeypatch.setattr(loading, "is_terminal", lambda stream: True)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    return now


def columns_of(bar: LoadingBar) -> list[str]:
    return [type(column).__name__ for column in bar._bar.columns]


def test_a_short_wait_shows_no_bar(clock):
    with LoadingBar(Terminal("never")) as bar:
        for done in range(10):
            bar(done, 10)
        assert bar._bar is None


def test_a_wait_of_two_seconds_shows_a_bar(clock):
    with LoadingBar(Terminal("never")) as bar:
        clock.seconds = 2.5
        bar(5, 10)
        assert "TimeRemainingColumn" not in columns_of(bar)
        assert bar._bar.tasks[0].completed == 5
    assert not bar._bar.live.is_started


def test_a_wait_of_over_ten_seconds_shows_the_time_left(clock):
    with LoadingBar(Terminal("never")) as bar:
        clock.seconds = 2.5
        bar(1, 10)
        assert "TimeRemainingColumn" in columns_of(bar)


def test_a_hidden_bar_comes_back_after_two_more_seconds(clock):
    with LoadingBar(Terminal("never")) as bar:
        clock.seconds = 2.5
        bar(5, 10)
        shown = bar._bar
        bar.hide()
        assert not shown.live.is_started
        clock.seconds = 4
        bar(6, 10)
        assert bar._bar is None
        clock.seconds = 5
        bar(7, 10)
        assert bar._bar.tasks[0].completed == 7


def test_quiet_and_pipes_show_no_bar(clock, monkeypatch):
    clock.seconds = 99
    quiet = LoadingBar(Terminal("never", quiet=True))
    clock.seconds = 199
    quiet(1, 10)
    monkeypatch.setattr(loading, "is_terminal", lambda stream: False)
    piped = LoadingBar(Terminal("never"))
    clock.seconds = 299
    piped(1, 10)
    assert quiet._bar is None
    assert piped._bar is None


def test_the_start_line_of_a_quantized_model():
    info = {
        "path": "/m",
        "parameters": 1_240_000_000,
        "backend": "cpu",
        "device": "cpu",
        "isa": "avx512-vnni",
        "threads": 8,
        "quantization": {"bits": 4, "quant_method": "gptq"},
        "weights": "4-bit",
        "weight_bytes": 812_000_000,
        "context": 4096,
        "cache_dtype": "float16",
    }
    assert start_line(info) == (
        "/m · 1.24 B parameters · cpu on cpu avx512-vnni · 8 threads · weights 4-bit gptq as 4-bit, 812 MB"
        " · context 4096 float16"
    )
    assert "threads: whatever" in start_line(info | {"threads": "whatever"})


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2_100_000_000, "2.1 GB"), (5e12, "5 TB")]
)
def test_sizes(nbytes, text):
    assert size(nbytes) == text


def test_counts_and_rates():
    assert [count(number) for number in (7, 28_832, 1_100_000_000)] == ["7", "28.8 k", "1.1 B"]
    assert [rate(10, 2), rate(1000, 2), rate(0, 1), rate(5, 0)] == ["5.0 t/s", "500 t/s", "- t/s", "- t/s"]


def test_the_statistics_line():
    usage = SimpleNamespace(prompt_tokens=812, cached_tokens=100, completion_tokens=256)
    timings = SimpleNamespace(prefill_s=5.0, decode_s=14.0, ttft_s=0.41)
    result = SimpleNamespace(usage=usage, timings=timings, finish_reason="stop", tokens=[5])
    line = statistics(result)
    assert line.startswith("prompt 812 tok 142 t/s (100 cached) · gen 256 tok 18.2 t/s · ttft 0.41 s · ")
    assert line.endswith("stop eos")
    assert statistics(result, stop_strings=True).endswith("stop eos or stop text")


def test_a_prompt_that_was_not_read_to_its_end_has_no_rate():
    usage = SimpleNamespace(prompt_tokens=812, cached_tokens=0, completion_tokens=0)
    timings = SimpleNamespace(prefill_s=5.0, decode_s=0.0, ttft_s=5.0)
    line = statistics(SimpleNamespace(usage=usage, timings=timings, finish_reason="cancelled", tokens=[]))
    assert line.startswith("prompt 812 tok (not to its end) · gen 0 tok - t/s · ")
    assert "ttft" not in line
