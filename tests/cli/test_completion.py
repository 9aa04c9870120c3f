from __future__ import annotations

import shutil
import subprocess

import pytest

from edgellm.cli.completion import walk
from edgellm.cli.main import COMMANDS, build_parser

ASK = r"""
source "$1"
COMP_WORDS=(%s)
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_edgellm
echo "${COMPREPLY[@]}"
"""


def test_all_commands_and_options_are_walked():
    options, commands = walk(build_parser())
    assert [command.name for command in commands] == list(COMMANDS)
    assert "--version" in {name for option in options for name in option.names}
    run = next(command for command in commands if command.name == "run")
    assert {"-n", "--max-tokens", "--json", "--debug"} <= {name for option in run.options for name in option.names}


@pytest.fixture
def bash(cli, tmp_path):
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    script = tmp_path / "edgellm.bash"
    script.write_text(cli("completion", "bash").out)

    def ask(words: str) -> list[str]:
        command = ["bash", "--norc", "-c", ASK % words, "bash", str(script)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert done.stderr == ""
        return done.stdout.split()

    return ask


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("edgellm ch", ["chat", "check"]),
        ("edgellm chat --ev", ["--evict"]),
        ("edgellm chat --evict ''", ["shift", "recompute", "error"]),
        ("edgellm -v run --cache-dtype fl", ["float32", "float16"]),
        ("edgellm completion ''", ["bash", "zsh", "fish"]),
        ("edgellm --ver", ["--version", "--verbose"]),
        ("edgellm chat mod", []),  # file names: bash's own
        ("edgellm run --system ''", []),
        ("edgellm run --seed --js", []),
    ],
)
def test_bash_completes(bash, words, expected):
    assert sorted(bash(words)) == sorted(expected)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_accept_the_script(shell, cli, tmp_path):
    script = tmp_path / "script"
    done = cli("completion", shell)
    script.write_text(done.out)
    assert done.code == 0
    assert all(name in done.out for name in COMMANDS)
    if shutil.which(shell):
        assert subprocess.run([shell, "-n", str(script)], timeout=20).returncode == 0


def test_an_unknown_shell_is_refused(cli):
    done = cli("completion", "bsh")
    assert done.code == 2
    assert "Did you mean bash?" in done.err
