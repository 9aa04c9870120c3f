"""`edgellm chat`: a conversation in the terminal."""

from __future__ import annotations

import os
from argparse import Namespace

from edgellm.cli import options
from edgellm.cli.loading import load
from edgellm.cli.parser import Parser
from edgellm.cli.terminal import Terminal

_ABOUT = '''\
Talk with a model. Without MODEL the embedded one answers. /help lists the commands; """ opens a message of several
lines; Ctrl-C stops an answer, Ctrl-D leaves. Where standard input is not a terminal, each line is a message and only
the answers go to stdout.
'''


def add_arguments(parser: Parser) -> None:
    """Arguments of `edgellm chat`."""
    parser.description = _ABOUT
    parser.usage = "edgellm chat [OPTION ...] [MODEL]"
    options.add_model(parser)
    parser.add_argument("--load", metavar="FILE", help="go on with a conversation that /save wrote")
    parser.add_argument("--stats", action="store_true", help="a line of statistics after each answer")
    parser.add_argument("--no-history", action="store_true", help="do not keep what is typed")
    options.add_system(parser)
    parser.add_argument(
        "--evict",
        choices=options.EVICTIONS,
        default="shift",
        help="when the context is full, the oldest turns go and the rest shifts (default) or is recomputed; or stop",
    )
    options.add_sampling(parser)
    options.add_running(parser)


def run(args: Namespace) -> int:
    """Chat until the input ends or a command ends it."""
    from edgellm.cli.chat_session import ChatSession
    from edgellm.cli.reader import open_reader
    from edgellm.cli.slash import COMMANDS

    terminal = Terminal.of(args)
    sampling = options.sampling_of(args)
    with load(args, terminal) as llm:
        session = ChatSession(llm, args, terminal, sampling)
        commands = [f"/{name}" for name in COMMANDS]
        reader = open_reader(terminal, history=not args.no_history, commands=commands)
        if args.load:
            session.restore(os.path.expanduser(args.load))
        session.greet(reader)
        return session.run(reader)
