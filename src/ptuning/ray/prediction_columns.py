"""The columns that bulk scoring adds to a data set: their names, their Arrow types, their values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ptuning.errors import ConfigError
from ptuning.kinds import LabelForm
from ptuning.ray.parts import ADDED
from ptuning.task import Label, Task

if TYPE_CHECKING:
    from ptuning.inference.predictor import Prediction


@dataclass(frozen=True, kw_only=True)
class PredictionColumns:
    """The added columns.

    A row of one task has ``label`` (a list of them, if the task has several labels per row) and
    ``probabilities`` (a struct with a field per label), or ``value`` for a regression. Rows of mixed tasks
    have ``label`` (several labels joined by ``|``), ``value`` and ``probabilities`` (a map), null where a
    task does not have it. ``abstained`` is there if abstaining was asked for. ``error`` is null for a row
    that was answered; in a row that was not, it is the reason, and the other columns are null.

    Args:
        task: The task of all rows; ``None`` if each row has its own.
        abstaining: Whether abstaining was asked for.
        prefix: What their names start with.
    """

    task: Task | None
    abstaining: bool = False
    prefix: str = ""

    @property
    def error(self) -> str:
        """The name of the column with the reason why a row has no prediction."""
        return f"{self.prefix}error"

    @property
    def fields(self) -> list[pa.Field]:
        """Names and types. The last one, of the error, has the names of all in its metadata."""
        types = self._types()
        if self.abstaining:
            types["abstained"] = pa.bool_()
        types["error"] = pa.string()
        fields = [pa.field(f"{self.prefix}{name}", kind) for name, kind in types.items()]
        names = json.dumps([field.name for field in fields])
        return [*fields[:-1], fields[-1].with_metadata({ADDED: names})]

    def _types(self) -> dict[str, pa.DataType]:
        if self.task is None:
            chances = pa.map_(pa.string(), pa.float64())
            return {"label": pa.string(), "value": pa.float64(), "probabilities": chances}
        if not self.task.labels:
            return {"value": pa.float64()}
        one = _type_of(self.task.labels)
        label = pa.list_(one) if self.task.kind.form is LabelForm.SEVERAL else one
        chances = pa.struct([(str(name), pa.float64()) for name in self.task.labels])
        return {"label": label, "probabilities": chances}

    def check_free(self, names: Sequence[str]) -> None:
        """Refuse a data set with columns of these names.

        Args:
            names: The columns that are kept.

        Raises:
            ConfigError: names the columns.
        """
        if taken := [field.name for field in self.fields if field.name in names]:
            raise ConfigError(
                f"the data set already has {'columns' if len(taken) > 1 else 'a column'} named "
                f"{', '.join(map(repr, taken))}, as the predictions have",
                remedy="set a prefix for the names of the predictions, such as --prefix predicted_ (in "
                "Python: prefix='predicted_'), or keep fewer columns with --keep (in Python: keep=…)",
            )

    def add(self, table: pa.Table, answers: Sequence[Prediction | str]) -> pa.Table:
        """``table`` with these columns.

        Args:
            answers: The prediction of each row, or the reason why there is none.
        """
        rows = [self._values(answer) for answer in answers]
        for field in self.fields:
            name = field.name.removeprefix(self.prefix)
            table = table.append_column(field, pa.array([row.get(name) for row in rows], field.type))
        return table

    def _values(self, answer: Prediction | str) -> dict[str, Any]:
        if isinstance(answer, str):
            return {"error": answer}
        found = answer.to_dict()
        if found.get("label") is not None:
            found["label"] = self._label(found["label"])
        if self.task is None and "probabilities" in found:
            found["probabilities"] = list(found["probabilities"].items())
        return found

    def _label(self, label: Any) -> Any:
        if self.task is None:
            return "|".join(map(str, label)) if isinstance(label, list) else str(label)
        if _type_of(self.task.labels) != pa.string():
            return label
        return [str(each) for each in label] if isinstance(label, list) else str(label)


def _type_of(labels: Sequence[Label]) -> pa.DataType:
    """The type of labels; a string if they are of several."""
    kinds = {type(label) for label in labels}
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    if kinds <= {int, float}:
        return pa.float64()
    return pa.string()
