"""``ptuning predict --adapters``: rows of many tasks, each answered by the adapter that it names."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from ptuning.cli.options import Parser
from ptuning.cli.shared import bytes_of, device_of, pack
from ptuning.errors import ConfigError, PTuningError, UserError
from ptuning.typos import one_typo_away

if TYPE_CHECKING:
    from ptuning.data import Example
    from ptuning.data.bad_rows import LeftOut
    from ptuning.inference.predictor import Prediction
    from ptuning.training.config import DataConfig

TASK_COLUMN = "task"


def add_adapters(parser: Parser) -> None:
    """Add the options for rows of many tasks."""
    group = parser.add_argument_group("rows of many tasks")
    group.add_argument(
        "--adapters",
        metavar="FOLDER",
        help="folder with one adapter in each sub-folder, all on one backbone; each row is answered by the "
        "adapter in its task column, which is loaded when a row first names it",
    )
    group.add_argument(
        "--task_column", help=f"column with the names of the adapters (default: {TASK_COLUMN})"
    )
    group.add_argument(
        "--memory_limit",
        type=float,
        metavar="GIB",
        help="maximum GiB of adapters in memory; beyond it, those that were used least recently are moved "
        "to temporary files (default: no limit)",
    )


def check_adapters(given: Any, parser: Parser) -> None:
    """Refuse options that do not go together.

    Raises:
        ConfigError: names the option.
    """
    bytes_of(given, "packed_memory", least=0)
    if given.adapters is None:
        if given.adapter is None:
            parser.error("the following arguments are required: adapter")
        for name in ("task_column", "memory_limit"):
            if getattr(given, name) is not None:
                raise ConfigError(f"--{name} is for rows of many tasks", remedy="add --adapters FOLDER")
        return
    if given.adapter is not None:
        parser.error(f"unrecognized arguments: {given.adapter}")
    if given.revision is not None:
        raise ConfigError("--revision is for an adapter on the Hub", remedy="leave it out with --adapters")
    bytes_of(given, "memory_limit")


class TaskAnswers:
    """Answers rows with the adapters of a folder.

    Args:
        given: The command's options.
        data: How rows are read.

    Attributes:
        task: ``None``: each row has its own.
        rows: What ``stream_examples`` needs to know about the rows.
    """

    task = None

    def __init__(self, given: Any, data: DataConfig) -> None:
        from ptuning.inference.adapter_folder import AdapterFolder

        device, dtype = device_of(given)
        self._folder = AdapterFolder(
            given.adapters,
            backbone=given.backbone,
            dtype=dtype,
            device=device,
            memory_limit=bytes_of(given, "memory_limit"),
            adjust=lambda backbone: pack(backbone, given),
            allow_pickle=given.allow_pickle,
        )
        self.rows: dict[str, Any] = {"task_column": given.task_column or TASK_COLUMN}
        names = ("batch_size", "batch_tokens", "window", "abstain_below")
        self._options = {name: getattr(given, name) for name in names}
        self._too_long, self._skip = data.too_long, data.bad_rows == "skip"

    def stream(self, examples: Iterable[Example | None], left_out: LeftOut) -> Iterator[Prediction]:
        """Predictions in the order of ``examples``.

        Raises:
            UserError: for the first row that cannot be answered, after the predictions for the rows before
                it; with ``bad_rows="skip"``, such rows are added to ``left_out``.
        """
        from ptuning.data.bad_rows import LeftOut
        from ptuning.inference.mixed import MultiPredictor

        refused = LeftOut()  # left_out may be written to by the thread that reads
        waiting: deque[Example] = deque()  # the rows that MultiPredictor has, in its order
        named = self._loaded(examples, waiting, refused)
        if (first := next(filter(None, named), None)) is not None:
            predictor = MultiPredictor(*self._folder.opened, too_long=self._too_long, **self._options)
            for answer in predictor.stream(chain([first], named)):
                example = waiting.popleft()
                if isinstance(answer, PTuningError):
                    self._refuse(example, answer, refused)
                else:
                    yield answer
        left_out.join(refused)

    def _loaded(
        self, examples: Iterable[Example | None], waiting: deque[Example], refused: LeftOut
    ) -> Iterator[tuple[Example, str] | None]:
        """The rows whose task is loaded by now."""
        from ptuning.data.bad_rows import NAMED

        for example in examples:
            if example is None:
                yield None
                continue
            name = example.task or ""
            try:
                self._folder.load(name)
            except KeyError:
                # Only the first problems are shown, and a hint takes half a millisecond.
                unknown = self._unknown(example, name, hint=refused.count < NAMED)
                self._refuse(example, unknown, refused)
                continue
            waiting.append(example)
            yield example, name

    def _unknown(self, example: Example, name: str, *, hint: bool) -> PTuningError:
        from ptuning.data.places import listing
        from ptuning.errors import DataError

        names = self._folder.names
        near = one_typo_away(name, frozenset(names).__contains__) if hint else None
        return DataError(
            f"{example.place}, the task",
            got=repr(name),
            expected=f"an adapter in {self._folder.path}: {listing(names, 8)}",
            remedy=f"did you mean {near!r}?" if near else None,
        )

    def _refuse(self, example: Example, error: PTuningError, refused: LeftOut) -> None:
        """Raise the error of a row, or leave the row out."""
        from ptuning.data.bad_rows import offering_skip
        from ptuning.data.places import Problem
        from ptuning.errors import DataError

        if not isinstance(error, UserError):
            raise error
        of_row = DataError(error.problem, got=error.got, expected=error.expected, remedy=error.remedy)
        if not self._skip:
            raise offering_skip(of_row) from error
        kind = error.problem.removeprefix(example.place).lstrip(":, ")
        kind = " ".join(filter(None, (kind, "" if error.got is None else str(error.got))))
        refused.add([Problem(row=example.row, kind=kind, error=of_row)])
