"""How much of the queue each caller and each of its tasks has, and what goes before a new request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


class Shares:
    """Amounts by caller and task.

    Attributes:
        total: Their sum.
    """

    def __init__(self) -> None:
        self.total = 0
        self._callers: Counter[str] = Counter()
        self._tasks: dict[str, Counter[str]] = {}

    def add(self, caller: str, task: str, amount: int) -> None:
        """Add to what a caller has for a task; a negative amount takes away."""
        self.total += amount
        self._callers[caller] += amount
        tasks = self._tasks.setdefault(caller, Counter())
        tasks[task] += amount
        if not tasks[task]:
            del tasks[task]
        if not tasks:
            del self._tasks[caller], self._callers[caller]

    def before(self, caller: str, new: Mapping[str, int]) -> int:
        """How much of this is served before a new request is done, if callers take fair turns.

        By the time that a caller has been served an amount, every other caller has been served as much, or
        all that it has. The tasks of one caller take turns in the same way.

        Args:
            new: What the request adds for each task.
        """
        tasks = self._tasks.get(caller, Counter())
        turn = max((tasks[task] + amount for task, amount in new.items()), default=0)
        own = sum(min(amount, turn) for amount in tasks.values())
        turn = own + sum(new.values())
        return own + sum(min(amount, turn) for other, amount in self._callers.items() if other != caller)
