"""What lies in the queue of a fake stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Work:
    """A launch, copy or fill. `beside`: a launch that may begin beside the one before it."""

    name: str
    run: Callable[[], None]
    beside: bool = False


@dataclass
class Event:
    """A mark in a stream. `seconds` is when the device came there, None before."""

    stream: Stream | None = None
    seconds: float | None = None
    mark: Work | None = None


@dataclass
class Graph:
    """Work recorded from a stream."""

    works: list[Work] = field(default_factory=list)


@dataclass
class GraphExec:
    """A graph ready to be launched."""

    works: list[Work]


@dataclass
class Stream:
    """A queue of work. `capture` is the graph that is being recorded, if one is."""

    queue: list[Work] = field(default_factory=list)
    capture: Graph | None = None
    broken: bool = False
