"""What the processes of a distributed run do together: they agree, and end when one of them has ended.

Every process makes the same decisions at the same step, or else one would wait for the others without end.
So what may differ between them (a signal, a metric's last bits) is shared before anything depends on it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ptuning.errors import ProcessLost, out_of_memory

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""How long a process waits for work that another one does for all."""


def any_process(accelerator: Accelerator, asked: bool) -> bool:
    """Whether ``asked`` is true in any process; all of them have to call this."""
    return any_of_each(accelerator, [asked])[0]


def any_of_each(accelerator: Accelerator, asked: Sequence[bool]) -> list[bool]:
    """:func:`any_process` for several questions at once, which costs no more than one."""
    if accelerator.num_processes == 1:
        return list(asked)
    counts = torch.tensor([float(bool(each)) for each in asked], device=accelerator.device)
    return [count > 0 for count in accelerator.reduce(counts).tolist()]


def from_main(accelerator: Accelerator, value: T) -> T:
    """The main process's ``value``, in all of them; all of them have to call this."""
    if accelerator.num_processes == 1:
        return value
    found = [value]
    broadcast_object_list(found)
    return found[0]


@contextmanager
def taking_time(accelerator: Accelerator) -> Iterator[None]:
    """At the end of the ``with`` block each process waits for the others, however long their blocks take.

    Other collectives give up after 10 minutes with NCCL, and 30 with gloo.
    """
    if accelerator.num_processes == 1:
        yield
        return
    group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield
        torch.distributed.barrier(group)
    finally:
        torch.distributed.destroy_process_group(group)


def draw_for_step(accelerator: Accelerator, seed: int, step: int) -> None:
    """Seed torch's generators for a step of this process, if there are several.

    So each process draws dropout masks of its own, and a resumed run draws the same ones again although a
    checkpoint has the generators of the main process only.
    """
    if accelerator.num_processes > 1:
        entropy = np.random.SeedSequence((seed, step, accelerator.process_index))
        torch.manual_seed(int(entropy.generate_state(1)[0]))


@contextmanager
def noticing_lost(remedy: Callable[[], str | None]) -> Iterator[None]:
    """In the ``with`` block, the end of another process is an error with one sentence.

    Args:
        remedy: What to do about it.

    Raises:
        ProcessLost: instead of the communication library's error.
    """
    try:
        yield
    except RuntimeError as error:
        process, of = _place()
        noticed = isinstance(error, ProcessLost) and error.remedy is None  # in a block inside this one
        if of == 1 or not (noticed or _is_communication(error)):
            raise
        raise ProcessLost(
            f"process {process} of {of} cannot go on: another one has ended, or cannot be reached",
            remedy=remedy(),
        ) from error


def _place() -> tuple[int, int]:
    """The number of this process, and of all; from the launcher, if they have not met yet."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _is_communication(error: RuntimeError) -> bool:
    """Whether torch.distributed raised it: gloo's errors are bare ones."""
    if out_of_memory(error):
        return False
    if isinstance(error, torch.distributed.DistError):
        return True
    return type(error) is RuntimeError and any(name in str(error).lower() for name in ("gloo", "nccl"))
