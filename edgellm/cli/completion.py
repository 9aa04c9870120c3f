"""`edgellm completion`: shell completion, written from the parser itself."""

from __future__ import annotations

from argparse import SUPPRESS, Namespace
from dataclasses import dataclass

from edgellm.cli.parser import Parser, actions_of

_ABOUT = """\
Print a completion script. To use it:

  bash   edgellm completion bash > ~/.local/share/bash-completion/completions/edgellm
  zsh    edgellm completion zsh > "${fpath[1]}/_edgellm"
  fish   edgellm completion fish > ~/.config/fish/completions/edgellm.fish
"""


@dataclass(frozen=True)
class Option:
    """An option as shells see it: its names, its help, what its value may be; `value` None where it takes none."""

    names: tuple[str, ...]
    summary: str
    value: str | None
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Command:
    """A command as shells see it; `words` are the allowed values of its positional argument, if they are few."""

    name: str
    summary: str
    options: tuple[Option, ...]
    words: tuple[str, ...]


def add_arguments(parser: Parser) -> None:
    """Arguments of `edgellm completion`."""
    parser.description = _ABOUT
    parser.add_argument("shell", metavar="SHELL", choices=tuple(_SHELLS), help=", ".join(_SHELLS))


def run(args: Namespace) -> int:
    """Print the script."""
    from edgellm.cli.main import build_parser
    from edgellm.cli.terminal import Terminal

    Terminal.of(args).line(_SHELLS[args.shell](*walk(build_parser())))
    return 0


def walk(parser: Parser) -> tuple[tuple[Option, ...], list[Command]]:
    """The options in front of a command, and all commands."""
    commands = []
    for action in actions_of(parser):
        if not isinstance(action.choices, dict):
            continue
        summaries = {entry.dest: entry.help or "" for entry in action._choices_actions}
        for name, command in action.choices.items():
            command.complete()
            words = [w for a in actions_of(command) if not a.option_strings for w in a.choices or ()]
            commands.append(Command(name, summaries.get(name, ""), _options(command), tuple(words)))
    return _options(parser), commands


def _options(parser: Parser) -> tuple[Option, ...]:
    return tuple(
        Option(
            tuple(action.option_strings),
            (action.help or "").split(";")[0] if action.help != SUPPRESS else "",
            None if action.nargs == 0 else str(action.metavar or action.dest),
            tuple(map(str, action.choices or ())),
        )
        for action in actions_of(parser)
        if action.option_strings
    )


def bash(options: tuple[Option, ...], commands: list[Command]) -> str:
    """A bash function. File names are completed wherever nothing else is known."""
    values, words = [], []
    for command in [Command("", "", options, tuple(c.name for c in commands)), *commands]:
        for option in command.options:
            patterns = "|".join(f"'{command.name} {name}'" for name in option.names)
            if option.choices:
                values.append(f"    {patterns}) words='{' '.join(option.choices)}' ;;")
            elif option.value is not None:
                values.append(f"    {patterns}) return ;;")
        names = " ".join(name for option in command.options for name in option.names)
        words.append(f"    '{command.name}') options='{names}' words='{' '.join(command.words)}' ;;")
    names = "|".join(command.name for command in commands)
    return "\n".join(
        [
            "# bash completion for edgellm",
            "_edgellm() {",
            "  local command= options= words= word",
            "  local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}",
            "  COMPREPLY=()",
            '  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
            f'    case "$word" in {names}) command=$word; break ;; esac',
            "  done",
            '  case "$command $before" in',
            *values,
            "  esac",
            '  if [ -z "$words" ]; then',
            '    case "$command" in',
            *("  " + line for line in words),
            "    esac",
            '    case "$current" in -*) words=$options ;; esac',
            "  fi",
            '  COMPREPLY=($(compgen -W "$words" -- "$current"))',
            "}",
            "complete -o default -o bashdefault -F _edgellm edgellm",
        ]
    )


def zsh(options: tuple[Option, ...], commands: list[Command]) -> str:
    """A zsh completion function."""
    lines = ["#compdef edgellm", "_edgellm() {", "  local -a commands=("]
    lines += [f"    {_quoted(f'{c.name}:{c.summary}')}" for c in commands]
    lines += ["  )", "  local context state state_descr line", "  typeset -A opt_args", "  _arguments -C \\"]
    lines += [f"    {spec} \\" for option in options for spec in _zsh_specs(option)]
    lines += ["    '1: :->command' '*:: :->rest'", "  case $state in", "    command) _describe command commands ;;"]
    lines += ["    rest) case $words[1] in"]
    for command in commands:
        specs = [spec for option in command.options for spec in _zsh_specs(option)]
        specs.append(f"'1: :({' '.join(command.words)})'" if command.words else "'*: :_files'")
        lines.append(f"      {command.name}) _arguments {' '.join(specs)} ;;")
    return "\n".join([*lines, "    esac ;;", "  esac", "}", '_edgellm "$@"'])


def _zsh_specs(option: Option) -> list[str]:
    summary = option.summary.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")
    tail = f"[{summary}]"
    if option.choices:
        tail += f": :({' '.join(option.choices)})"
    elif option.value is not None:
        tail += f": :{'_files' if option.value == 'FILE' else ' '}"
    return [_quoted(name + tail) for name in option.names]


def fish(options: tuple[Option, ...], commands: list[Command]) -> str:
    """Lines of fish's `complete`."""
    lines = ["# fish completion for edgellm"]
    lines += [_fish_line("__fish_use_subcommand", option) for option in options]
    for command in commands:
        lines.append(f"complete -c edgellm -f -n __fish_use_subcommand -a {command.name} -d {_quoted(command.summary)}")
        seen = _quoted(f"__fish_seen_subcommand_from {command.name}")
        lines += [_fish_line(seen, option) for option in command.options]
        if command.words:
            lines.append(f"complete -c edgellm -f -n {seen} -a {_quoted(' '.join(command.words))}")
    return "\n".join(lines)


def _fish_line(condition: str, option: Option) -> str:
    names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
    value = ""
    if option.choices:
        value = f" -x -a {_quoted(' '.join(option.choices))}"
    elif option.value is not None:
        value = " -r" if option.value == "FILE" else " -x"
    return f"complete -c edgellm -n {condition} {names}{value} -d {_quoted(option.summary)}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


_SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}
