"""What a distillation says while it runs; a person's terminal overrides what it shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a command's arguments are known without what training needs
    from edgellm.convert.distill.plan import MemoryPlan
    from edgellm.convert.distill.quality import Quality
    from edgellm.convert.distill.train import Progress


class Listener:
    """Hears everything and says nothing."""

    def memory(self, plan: MemoryPlan) -> None:
        """Before anything large is read."""

    def note(self, text: str) -> None:
        """Something a person should know."""

    def phase(self, name: str) -> None:
        """What begins: reading, reducing, measuring, healing, training, writing."""

    def quality(self, name: str, found: Quality) -> None:
        """The student on the held-out text, "cut", "healed", "trained"."""

    def block(self, done: int, count: int) -> None:
        """A block was healed."""

    def predicted(self, facts: dict[str, Any]) -> None:
        """Before the first step: steps, tokens_per_second and seconds, from a measured one."""

    def step(self, progress: Progress) -> None:
        """A step of training is done."""
