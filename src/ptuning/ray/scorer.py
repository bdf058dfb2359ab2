"""The actor of bulk scoring: loads a backbone and its adapters once, and answers the rows of many blocks."""

from __future__ import annotations

import os
import platform
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ptuning.data.bad_rows import offering_skip
from ptuning.data.columns import Columns
from ptuning.data.examples import Example, as_examples
from ptuning.data.options import BadRows, TooLong
from ptuning.data.places import Origin, Problem, first_line, shortened
from ptuning.errors import AdapterError, DataError, OutputError, PTuningError, UserError
from ptuning.inference.kernel_caches import bound_kernel_caches
from ptuning.ray.cluster import Versions
from ptuning.ray.prediction_columns import PredictionColumns

if TYPE_CHECKING:
    import torch

    from ptuning.inference.predictor import Prediction
    from ptuning.model.backbone import Backbone

    Answers = Iterator[Prediction | PTuningError]

_ORIGIN = Origin(name="the block")


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What an actor needs to know. It is sent to every worker, so it has plain values only.

    Attributes:
        adapter: The adapter of all rows, as a folder or Hub id; ``None`` if each row names its own.
        adapters: A folder of adapters, or the folder of each, by name.
        digests: The version of each adapter, by name; of the only one under ``""``.
        columns: Where the texts are, and the task.
        added: The columns that are added.
        keep: The input columns that are kept; ``None`` for all.
        threads: Of torch.
        versions: Those that a worker has to have.
        directory: Where relative paths start, such as that of a backbone in an adapter's record.
        others: As the parameters of :func:`~ptuning.ray.scoring.predict_dataset`.
    """

    adapter: str | None
    adapters: str | Mapping[str, str] | None
    digests: Mapping[str, str]
    columns: Columns
    added: PredictionColumns
    keep: tuple[str, ...] | None
    bad_rows: BadRows
    backbone: str | None
    revision: str | None
    device: str
    precision: str
    batch_tokens: int
    too_long: TooLong | None
    abstain_below: float | None
    memory_limit: int | None
    packed_memory: float | None
    allow_pickle: bool
    threads: int
    versions: Versions
    directory: str


class Scorer:
    """A callable for ``Dataset.map_batches`` with ``batch_format="pyarrow"``.

    The process is the actor's own: its folder, torch's threads and the caches of kernels are set.

    Args:
        scoring: What to do.
    """

    def __init__(self, scoring: Scoring) -> None:
        self._scoring = scoring
        self._failed: PTuningError | None = None
        bound_kernel_caches()
        try:
            scoring.versions.check()
            with suppress(OSError):
                os.chdir(scoring.directory)
            self._answers = _opened(scoring)
        except PTuningError as error:
            # Raised with the first rows: an actor that cannot be created would be started again and again.
            self._failed = _on_this_node(error)
        except Exception as error:
            self._failed = OutputError(
                f"on the node {platform.node()}: a worker could not load its models ({first_line(error)})"
            )
            self._failed.__cause__ = error

    def __call__(self, table: pa.Table) -> pa.Table:
        """The rows with their predictions.

        Raises:
            ConfigError: the block has a column with the name of one that is added.
            PTuningError: an adapter or the backbone is missing on this node or differs from the driver's; or
                a row cannot be answered, with ``bad_rows="error"``.
        """
        if self._failed is not None:
            raise self._failed
        found: list[Prediction | str] = []
        keep, added = self._scoring.keep, self._scoring.added
        names = [name for name in _names(self._scoring.columns) if name is not None]
        # Blocks may differ in their columns, for example those of JSON lines.
        added.check_free(table.column_names if keep is None else keep)
        for name in dict.fromkeys((*names, *(keep or ()))):
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(table.num_rows))
        cells = [table.column(name).to_pylist() for name in names]
        rows = [dict(zip(names, values, strict=True)) for values in zip(*cells, strict=True)]
        for number, answer in enumerate(self._answered(rows)):
            if isinstance(answer, PTuningError):
                if not isinstance(answer, UserError):
                    raise answer
                reason = _unplaced(answer, number)
                if self._scoring.bad_rows == "error":
                    raise offering_skip(_located(reason, rows[number]))
                found.append(str(reason))
            else:
                found.append(answer)
        return added.add(table if keep is None else table.select(list(keep)), found)

    def _answered(self, rows: Sequence[Mapping[str, Any]]) -> Answers:
        """The answer for each row, or its error."""
        problems: list[Problem] = []
        columns = self._scoring.columns
        examples = list(as_examples(enumerate(rows), columns, _ORIGIN, need_label=False, problems=problems))
        errors: dict[int, PTuningError] = {problem.row: problem.error for problem in problems}
        answers = self._answers(examples)
        for number in range(len(rows)):
            yield errors[number] if number in errors else next(answers)


def _names(columns: Columns) -> tuple[str | None, ...]:
    return columns.text, columns.text_b, columns.task


def _opened(scoring: Scoring) -> Callable[[Sequence[Example]], Answers]:
    """The function that answers examples in order, its models loaded."""
    import torch
    from accelerate import Accelerator

    from ptuning.training.job import precision

    torch.set_num_threads(scoring.threads)
    device = Accelerator(cpu=scoring.device == "cpu").device
    dtype = precision(scoring.precision, device)
    if scoring.adapter is None:
        return _of_many(scoring, device, dtype)
    return _of_one(scoring, device, dtype)


def _of_one(
    scoring: Scoring, device: torch.device, dtype: torch.dtype | None
) -> Callable[[Sequence[Example]], Answers]:
    from ptuning.adapters import locate
    from ptuning.inference.predictor import Predictor
    from ptuning.model.ptuning import PTuningModel

    assert scoring.adapter is not None
    folder = locate(scoring.adapter, revision=scoring.revision, allow_pickle=scoring.allow_pickle)
    _check_version("", folder, scoring)
    model = PTuningModel.from_pretrained(
        folder, backbone=scoring.backbone, dtype=dtype, allow_pickle=scoring.allow_pickle
    )
    model = model.to(device).eval()
    _pack(model.backbone, scoring)
    predictor = Predictor(
        model=model,
        batch_tokens=scoring.batch_tokens,
        too_long=scoring.too_long,
        abstain_below=scoring.abstain_below,
    )

    def answers(examples: Sequence[Example]) -> Answers:
        try:
            yield from list(predictor.stream(examples))
        except UserError:
            errors = [predictor.refusal(example) for example in examples]
            if not any(errors):
                raise
            good = [each for each, error in zip(examples, errors, strict=True) if error is None]
            found = predictor.stream(good)
            yield from (next(found) if error is None else error for error in errors)

    return answers


def _of_many(
    scoring: Scoring, device: torch.device, dtype: torch.dtype | None
) -> Callable[[Sequence[Example]], Answers]:
    from ptuning.inference.adapter_folder import AdapterFolder
    from ptuning.inference.mixed import MultiPredictor

    assert scoring.adapters is not None
    folder = AdapterFolder(
        scoring.adapters,
        backbone=scoring.backbone,
        dtype=dtype,
        device=device,
        memory_limit=scoring.memory_limit,
        adjust=lambda backbone: _pack(backbone, scoring),
        allow_pickle=scoring.allow_pickle,
    )
    checked: set[str] = set()

    def named(examples: Sequence[Example]) -> Iterator[tuple[Example | PTuningError, str]]:
        for example in examples:
            name = example.task or ""
            try:
                if name not in scoring.digests:
                    raise KeyError(name)
                if name not in checked:
                    _check_version(name, folder.folder_of(name), scoring)
                    folder.load(name)
                    checked.add(name)
            except KeyError:
                yield (
                    DataError(
                        f"{example.place}, the task", got=shortened(name), expected="the name of an adapter"
                    ),
                    name,
                )
                continue
            except PTuningError as error:
                raise _on_this_node(error) from error
            yield example, name

    def answers(examples: Sequence[Example]) -> Answers:
        rows = deque(named(examples))
        if all(isinstance(example, PTuningError) for example, _ in rows):
            yield from (example for example, _ in rows if isinstance(example, PTuningError))
            return
        predictor = MultiPredictor(
            *folder.opened,
            batch_tokens=scoring.batch_tokens,
            too_long=scoring.too_long,
            abstain_below=scoring.abstain_below,
        )
        yield from predictor.stream(rows)

    return answers


def _pack(backbone: Backbone, scoring: Scoring) -> None:
    from dataclasses import replace

    if scoring.packed_memory is not None:
        backbone.engine = replace(backbone.engine, packed_memory=scoring.packed_memory)


def _check_version(name: str, folder: Path, scoring: Scoring) -> None:
    """Refuse an adapter that is not the one that the driver has seen.

    Raises:
        AdapterError: it has another digest.
    """
    from ptuning.adapters import version

    got, expected = version(folder), scoring.digests.get(name)
    if got != expected:
        raise AdapterError(
            f"the adapter {folder}",
            got=f"the version {got[:12]}",
            expected=f"{(expected or 'none')[:12]}, as in the process that started the work",
            remedy="copy the same adapter to all nodes, and do not replace it while the work runs",
        )


def _on_this_node(error: PTuningError) -> PTuningError:
    """An error with the name of this node."""
    problem = f"on the node {platform.node()}: {error.problem}"
    return type(error)(problem, got=error.got, expected=error.expected, remedy=error.remedy)


def _unplaced(error: PTuningError, number: int) -> DataError:
    """The error of a row without the number that the row has in its block."""
    problem = error.problem.removeprefix(_ORIGIN.at(number)).lstrip(":, ")
    return DataError(problem, got=error.got, expected=error.expected, remedy=error.remedy)


def _located(error: DataError, row: Mapping[str, Any]) -> DataError:
    """The error of a row with the beginning of the row."""
    problem = f"the row {shortened(dict(row), 200)}: {error.problem}"
    return DataError(problem, got=error.got, expected=error.expected, remedy=error.remedy)
