from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edgellm import errors
from edgellm._version import __version__
from edgellm.cli import main as module
from edgellm.cli.main import Stopped, main

HEAVY = ("numpy", "tokenizers", "sentencepiece", "jinja2", "safetensors", "rich", "prompt_toolkit", "numba")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["chat", "--help"], ["completion", "bash"], ["nope"]])
def test_help_imports_nothing_heavy(words, environment):
    code = (
        "import sys\nfrom edgellm.cli.main import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=20)
    assert done.stderr.splitlines()[-1] == "[]"


def test_version(edgellm):
    done = edgellm("--version")
    assert (done.code, done.out) == (0, f"edgellm {__version__}\n")


def test_without_a_command_help_goes_to_stderr(cli):
    done = cli()
    assert done.code == 2
    assert done.out == ""
    assert "COMMAND" in done.err


def raising(error: BaseException):
    def run(args):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.EdgeLLMError("x"), 1),
        (errors.UsageError("x"), 2),
        (errors.ModelError("x"), 65),
        (errors.TemplateError("x"), 65),
        (errors.InputError("x"), 66),
        (errors.ContextLengthError("x"), 65),
        (errors.EngineBusy("x"), 69),
        (errors.EngineClosed("x"), 70),
        (errors.BackendUnavailable("x"), 69),
        (errors.NumericalError("x"), 70),
        (errors.OutOfMemoryError("x"), 75),
        (errors.OutputError("x"), 73),
        (OSError(28, "No space left on device"), 74),
        (MemoryError(), 75),
        (ZeroDivisionError("division by zero"), 70),
        (BrokenPipeError(), 141),
        (KeyboardInterrupt(), 130),
        (Stopped(15), 143),
        (Stopped(1), 129),
    ],
)
def test_exit_codes(error, code, cli, monkeypatch):
    monkeypatch.setattr("edgellm.cli.show.run", raising(error))
    monkeypatch.setattr(module, "_drop_stdout", lambda: None)
    done = cli("show")
    assert done.code == code
    assert "Traceback" not in done.err
    assert done.err.count("\n") == (0 if isinstance(error, (BrokenPipeError, KeyboardInterrupt, Stopped)) else 1)


def test_an_internal_error_names_itself_and_the_way_to_see_more(cli, monkeypatch):
    monkeypatch.setattr("edgellm.cli.show.run", raising(ZeroDivisionError("a \x1b[31m b")))
    done = cli("show")
    assert "internal error: ZeroDivisionError: a \\x1b[31m b" in done.err
    assert "--debug" in done.err


def test_debug_shows_the_traceback(cli, monkeypatch):
    monkeypatch.setattr("edgellm.cli.show.run", raising(errors.ModelError("x")))
    done = cli("show", "--debug")
    assert done.code == 65
    assert "Traceback" in done.err


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_reader_that_leaves_is_no_error(environment, tiny):
    command = f'"{sys.executable}" -m edgellm show "{tiny}" --tensors --json | head -c 1; echo " ${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stderr == ""
    assert done.stdout in ("{ 0\n", "{ 141\n")


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_reader_that_leaves_ends_the_answer(environment, tiny):
    words = f'run "{tiny}" hello -n 30000 --context 32768 -q --no-template'
    command = f'"{sys.executable}" -m edgellm {words} | head -c 5 > /dev/null; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, timeout=20)
    assert (done.stdout, done.stderr) == ("141\n", "")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_sigterm_ends_an_answer(environment, tiny):
    words = ["run", str(tiny), "hello", "-n", "30000", "--context", "32768", "-q"]
    command = [sys.executable, "-m", "edgellm", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        process.stdout.read(1)
        process.terminate()
        _, error = process.communicate(timeout=20)
    assert (process.returncode, error) == (143, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_an_input_output_error(environment):
    command = f'"{sys.executable}" -m edgellm completion bash > /dev/full'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 74
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX shells")
def test_closed_streams_are_no_error(environment, tiny):
    command = f'"{sys.executable}" -m edgellm show "{tiny}" >&- 2>&- <&-'
    assert subprocess.run(["bash", "-c", command], env=environment, timeout=60).returncode == 0


@pytest.mark.parametrize("flags", [["-O"], ["-W", "error", "-X", "dev"]])
def test_strict_pythons(flags, environment, tiny):
    command = [sys.executable, *flags, "-m", "edgellm", "run", str(tiny), "hello", "-n", "2", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_main_takes_its_arguments_from_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["edgellm", "--version"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert __version__ in capsys.readouterr().out
