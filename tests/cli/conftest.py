"""A tiny random model with its own tokenizer and chat template, and a process that runs `edgellm` on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgellm.cli.main import main

ROOT = Path(__file__).parents[2]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
_WORDS = "the a dog cat sat ran on under house tree and then said hello how are you fine thanks user assistant system"


def _tensors(config: dict) -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for layer in range(config["num_hidden_layers"]):
        stem = f"model.layers.{layer}."
        for name, rows, inputs in (
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ):
            shapes[f"{stem}{name}.weight"] = (rows, inputs)
        shapes[stem + "input_layernorm.weight"] = shapes[stem + "post_attention_layernorm.weight"] = (hidden,)
    tensors = {
        name: (1 if len(shape) == 1 else 0) + random.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    tensors["model.embed_tokens.weight"][config["eos_token_id"]] = 0  # its logit is 0: greedy answers never end
    return tensors


def write_model(folder: Path, *, template: str | None = TEMPLATE) -> Path:
    """Weights, config, tokenizer and template in `folder`."""
    import sentencepiece
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(3)
    words = _WORDS.split()
    corpus = folder.parent / f"{folder.name}-corpus.txt"
    corpus.write_text("\n".join(" ".join(random.choice(words, 8)) for _ in range(200)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=CONFIG["vocab_size"],
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=5,
    )
    (folder / "tokenizer.vocab").unlink()
    save_file(_tensors(CONFIG), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    if template is not None:
        names["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of some 30,000 random parameters that can chat, if without sense and, greedy, end."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny`, without a chat template."""
    return write_model(tmp_path_factory.mktemp("models") / "bare", template=None)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A home of its own, one thread, no colours, no EDGELLM_ variables but the place of the compiled kernels, here and
    in subprocesses."""
    kernels = os.environ["EDGELLM_CACHE_DIR"]
    for name in [name for name in os.environ if name.startswith(("EDGELLM_", "XDG_"))]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    changes = {"HOME": str(home), "OMP_NUM_THREADS": "1", "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    changes["EDGELLM_CACHE_DIR"] = kernels
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return dict(os.environ)


@pytest.fixture
def edgellm(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess]:
    """`edgellm ARGS` in a process of its own; `stdin` is text or bytes."""

    def run(*args: str, stdin: str | bytes = b"", env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        command = [sys.executable, "-m", "edgellm", *map(str, args)]
        done = subprocess.run(command, input=data, capture_output=True, env=environment | (env or {}), timeout=60)
        return SimpleNamespace(code=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())

    return run


@pytest.fixture
def cli(environment: dict[str, str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """`edgellm ARGS` in this process, which is faster; `stdin` is text."""

    def run(*args: object, stdin: str = "") -> SimpleNamespace:
        import io

        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return run


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`edgellm.load` gives a fake model; its answer is `scripted.reply(the visible text)`, one byte a token.

    `scripted.before_run` is called before each step; `scripted.asked` collects what the model was shown.
    """
    import edgellm
    from edgellm.api.llm import LLM
    from tests.engine.helpers import engine_of
    from tests.fakes import END, EOS, FakeTokenizer, fake_render

    script = SimpleNamespace(reply=lambda text: "Hello!", before_run=None, asked=[], options={})

    def answer(text: str) -> str:
        if not script.asked or script.asked[-1] != text:
            script.asked.append(text)
        return script.reply(text)

    def load(path: str | None = None, **options: object) -> LLM:
        script.options = {"path": path, **options}
        engine = engine_of(context=options["context"] or 256, reply=answer, before_run=script.before_run)
        info = {
            "path": path or "embedded",
            "parameters": 1234,
            "backend": "fake",
            "device": "cpu",
            "isa": "none",
            "threads": 1,
            "weights": "none",
            "weight_bytes": 4096,
            "context": engine.geometry.context,
            "cache_dtype": "float16",
            "notes": ["a note of the model"],
        }
        template = SimpleNamespace(name="fake")
        return LLM(engine, FakeTokenizer(), template=template, render=fake_render, eos_token_ids={EOS, END}, info=info)

    monkeypatch.setattr(edgellm, "load", load, raising=False)
    return script
