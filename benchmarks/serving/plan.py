"""How much of everything is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The sizes of a run.

    Args:
        rounds: How often each side is measured, alternating with the others.
        peer_rounds: The same for the comparisons over HTTP with infinity and with a process a task.
        rows: Rows that a side in this process answers in a round; half of them in the slower precision.
        seconds: How long each load over HTTP lasts in a round.
        warm: Seconds before that which are left out.
        open_seconds: How long each open loop lasts in a round.
        open_rounds: Rounds of the open loops.
        tasks: Numbers of tasks; the last is the usual one.
        kinds: Different combinations of prompt, units, readout and classes among the unlike tasks.
        processes: How many processes with a task each.
        starts: How often a server is started.
        tuned_rows: Training rows of the fully fine-tuned classifier that infinity serves.
    """

    rounds: int = 5
    peer_rounds: int = 3
    rows: int = 128
    seconds: float = 2.5
    warm: float = 0.5
    open_seconds: float = 12.0
    open_rounds: int = 3
    tasks: tuple[int, ...] = (1, 10, 100, 1000)
    kinds: int = 12
    processes: int = 4
    starts: int = 2
    tuned_rows: int = 640

    @property
    def most(self) -> int:
        """The usual number of tasks."""
        return self.tasks[-1]


QUICK = Plan(
    rounds=2,
    peer_rounds=1,
    rows=64,
    seconds=1.0,
    warm=0.3,
    open_seconds=3.0,
    open_rounds=1,
    tasks=(1, 10, 100),
    kinds=4,
    processes=2,
    starts=1,
    tuned_rows=64,
)
"""Enough to see that everything runs; its figures mean nothing."""
