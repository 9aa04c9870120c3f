"""The README is checked, not trusted: commands, rooms and architectures are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_two_commands_stand_alone_and_the_gate_runs_the_second() -> None:
    block = re.search(r"```\n(pip install .*?)\n(pip install .*?)\n```", README)
    assert block is not None
    install, test = (part.strip() for part in block[2].split("&&"))
    gate = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(rf"pip install .*{re.escape(install.removeprefix('pip install '))}$", gate, re.MULTILINE)
    assert gate.rstrip().endswith(test)


def test_every_command_is_described_and_no_other() -> None:
    from edgellm.cli.main import COMMANDS

    assert re.findall(r"^\| `edgellm (\w+)", README, re.MULTILINE) == list(COMMANDS)


def test_every_room_is_on_the_map() -> None:
    package = REPOSITORY / "edgellm"
    folders = {path.name for path in package.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    files = {path.name for path in package.glob("*.py") if not path.name.startswith("_")}
    rows = re.search(r"^\| room \| holds \|$(.*?)\n\n", README, re.MULTILINE | re.DOTALL)
    first_column = [row.split("|")[1] for row in rows[1].splitlines()[2:]]
    named = {name.rstrip("/") for cell in first_column for name in re.findall(r"`([^`]+)`", cell)}
    assert named == folders | files


def test_every_architecture_of_the_table_is_named() -> None:
    from edgellm.model.architectures import TABLE

    row = next(line for line in README.splitlines() if line.startswith("| architectures")).lower()
    for architecture in TABLE:
        name, digits = re.fullmatch(r"([a-z]+)(\d*)", architecture.name).groups()
        assert name.removesuffix("lm") in row, architecture.name
        assert digits in row, architecture.name


def test_the_transcript_is_what_the_embedded_model_says() -> None:
    import edgellm

    block = re.search(r"```\n\$ edgellm chat\n(.*?)\n```", README, re.DOTALL)[1]
    turns = re.findall(r"^> (.*?)\n(.*?)(?=\n> |\Z)", block, re.DOTALL | re.MULTILINE)
    assert turns
    with edgellm.load() as llm, llm.chat() as chat:
        for question, answer in turns:
            assert chat.send(question).text.split() == answer.split()


def test_the_tests_that_it_names_exist() -> None:
    named = re.findall(r"`(tests/[^`]+\.py)`", README)
    assert named
    assert [path for path in named if not (REPOSITORY / path).is_file()] == []
