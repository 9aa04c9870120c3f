from __future__ import annotations

import json
import os
import signal

import pytest


def test_the_answer_alone_is_on_stdout(cli, scripted):
    done = cli("run", "guide", "Say hello")
    assert (done.code, done.out) == (0, "Hello!\n")
    assert "<|user|>Say hello<|end|><|assistant|>" in scripted.asked[0]


def test_one_argument_that_is_no_model_is_a_prompt(cli, scripted):
    cli("run", "Say hello")
    assert scripted.options["path"] is None
    assert "<|user|>Say hello<|end|>" in scripted.asked[0]


def test_one_word_that_is_no_model_is_said(cli, scripted):
    assert "no model is called stroies" in cli("run", "stroies").err
    assert "no model" not in cli("run", "tell stories").err


def test_one_argument_that_is_a_model_reads_the_prompt(cli, scripted, tmp_path):
    (tmp_path / "m").mkdir()
    cli("run", tmp_path / "m", stdin="from stdin\n")
    assert scripted.options["path"] == str(tmp_path / "m")
    assert "<|user|>from stdin<|end|>" in scripted.asked[0]


@pytest.mark.parametrize("words", [(), ("-",), ("guide", "-")])
def test_the_prompt_from_standard_input(words, cli, scripted):
    cli("run", *words, stdin="two\nlines\n")
    assert "<|user|>two\nlines<|end|>" in scripted.asked[0]


def test_a_prompt_given_leaves_standard_input_alone(cli, scripted):
    cli("run", "guide", "given", stdin="piped")
    assert "piped" not in scripted.asked[0]


def test_without_the_template_the_text_is_continued(cli, scripted):
    seen = []
    scripted.before_run = lambda batch: seen.extend(batch.token_ids.tolist())
    assert cli("run", "guide", "--raw-prompt", "-n", "4", stdin="Once\n").code == 0
    assert bytes(seen[1:6]) == b"Once\n"


@pytest.mark.parametrize(
    ("words", "stdin", "says"),
    [
        (["guide", ""], "", "empty"),
        (["guide"], "", "empty"),
        (["guide", "x", "--json", "--jsonl"], "", "one of"),
        (["guide", "x", "--logprobs", "2"], "", "--json"),
        (["guide", "x", "--logprobs", "99", "--json"], "", "logprobs"),
        (["guide", "x", "--temperature", "-1"], "", "temperature"),
        (["guide", "x", "--no-template", "--system", "y"], "", "template"),
    ],
)
def test_usage_errors(words, stdin, says, cli, scripted):
    done = cli("run", *words, stdin=stdin)
    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert scripted.options == {}  # said before anything was loaded


def test_a_prompt_that_is_too_long_is_refused(cli, scripted):
    done = cli("run", "guide", "x" * 500, "--context", "64")
    assert (done.code, done.out) == (65, "")


def test_json(cli, tiny):
    done = cli("run", tiny, "hello", "-n", "4", "--json", "--logprobs", "2", "-q")
    found = json.loads(done.out)
    assert done.code == 0
    assert done.err == ""
    assert found["finish_reason"] in ("length", "stop")
    assert len(found["tokens"]) == len(found["logprobs"]) == found["usage"]["completion_tokens"] == 4
    assert [len(entry["top"]) for entry in found["logprobs"]] == [2] * 4
    assert set(found["timings"]) == {"prefill_s", "decode_s", "ttft_s", "total_s"}
    assert found["model"]["path"] == str(tiny)


def test_jsonl(cli, tiny):
    lines = [json.loads(line) for line in cli("run", tiny, "hello", "-n", "4", "--jsonl").out.splitlines()]
    pieces, result = lines[:-1], lines[-1]
    assert {line["type"] for line in pieces} == {"piece"}
    assert result["type"] == "result"
    assert "".join(line["text"] for line in pieces) == result["text"]


def test_plain_text_and_json_agree(cli, tiny):
    words = ["run", tiny, "hello", "-n", "6", "--raw"]
    assert cli(*words).out.removesuffix("\n") == json.loads(cli(*words, "--json").out)["text"].removesuffix("\n")


def test_the_same_seed_draws_the_same_answer(cli, tiny):
    words = ["run", tiny, "hello", "-n", "6", "--temperature", "1.5", "--json", "--seed"]
    first, second, other = (json.loads(cli(*words, seed).out)["tokens"] for seed in (1, 1, 2))
    assert first == second != other


def test_a_model_without_a_template_continues(cli, bare):
    assert cli("run", bare, "the dog", "-n", "3").code == 0
    assert cli("run", bare, "the dog", "-n", "3", "--system", "x").code == 2


def test_stop_strings_and_statistics(cli, scripted):
    done = cli("run", "guide", "x", "--stop", "lo", "--stats")
    assert done.out == "Hel\n"
    assert "stop eos or stop text" in done.err


def test_control_characters_are_stripped(cli, scripted):
    scripted.reply = lambda text: "\x1b[31mred\r"
    assert cli("run", "guide", "x").out == "[31mred\n"
    assert json.loads(cli("run", "guide", "x", "--json").out)["text"] == "\x1b[31mred\r"


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_prints_what_there_is_and_exits_130(cli, scripted):
    steps = []

    def before_run(batch):
        steps.append(batch)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGINT)

    scripted.before_run = before_run
    done = cli("run", "guide", "x", "--json")
    assert done.code == 130
    assert json.loads(done.out)["finish_reason"] == "cancelled"


def test_bytes_that_are_not_utf8_are_said(edgellm, tiny):
    done = edgellm("run", tiny, "-n", "2", stdin=b"hello \xff\xfe")
    assert done.code == 0
    assert "not UTF-8" in done.err


@pytest.mark.parametrize("env", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}])
def test_any_locale_will_do(edgellm, tiny, env):
    done = edgellm("run", tiny, "naïve 北京", "-n", "8", env=env)
    assert (done.code, "Traceback" in done.err) == (0, False)


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("no/such/model", 66, "no such file"),
        ("nosuchmodel", 66, "no such model"),
        ("https://host/model", 66, "addresses"),
        ("{tmp}/x.gguf", 65, "GGUF"),
        ("{tmp}/x.bin", 65, "Pickle"),
        ("{tmp}/empty", 65, "without safetensors"),
    ],
)
def test_what_is_no_model_says_why(name, code, says, cli, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    (tmp_path / "x.bin").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    done = cli("run", name.format(tmp=tmp_path), "prompt")
    assert (done.code, done.out) == (code, "")
    assert says in done.err
    assert done.err.count("\n") == 1


def test_an_unknown_backend(cli, tiny):
    done = cli("run", tiny, "x", "--backend", "tpu")
    assert done.code == 69
    assert "reference" in done.err
