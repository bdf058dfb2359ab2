"""Tokenised data sets: rows with ``input_ids`` are passed to the model unchanged.

This is the output of ``dataset.map(tokenize)`` and the input of ``transformers.Trainer``: ``input_ids``,
optionally ``attention_mask``, ``token_type_ids`` and ``segment_ids``, and ``labels`` (or ``label``), in any
form that labels of texts may have (:mod:`ptuning.data.task_labels`). Texts next to them are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from ptuning.data.columns import label_columns
from ptuning.data.examples import Example
from ptuning.data.label_cells import switch
from ptuning.data.places import Origin, listing, shortened
from ptuning.data.tables import Source, open_table
from ptuning.data.tokens import TokenRow
from ptuning.errors import DataError
from ptuning.model.ptuning import PTuningModel

#: In order of precedence: the name that models use, then those that transformers' collators rename.
LABEL_NAMES = ("labels", "label", "label_ids")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenisedExample(Example):
    """A row given as token ids; its ``text`` lists them, so that equal rows are recognised."""

    tokens: TokenRow


@dataclass(frozen=True, kw_only=True)
class TokenisedRows:
    """All rows of a tokenised source, without padding, with their labels unchanged.

    Attributes:
        label_names: The class names of a ``ClassLabel`` column, in order.
    """

    origin: Origin
    examples: list[TokenisedExample]
    label_names: tuple[str, ...] | None


def is_tokenised(source: Any) -> bool:
    """Whether a source in memory has token ids: a ``datasets.Dataset``, or a list of mappings."""
    columns: Any = None
    if hasattr(source, "column_names"):  # a Dataset; a streaming one may not know its columns
        columns = source.column_names or next(iter(source), None)
    elif isinstance(source, Sequence) and not isinstance(source, str) and source:
        columns = source[0]
    return isinstance(columns, list | Mapping) and "input_ids" in columns


def load_tokenised(source: Source, split: str, *, label: str | Sequence[str] | None = None) -> TokenisedRows:
    """The rows of a tokenised split.

    Args:
        source: A source for which :func:`is_tokenised` is true.
        split: The name of the split in messages.
        label: The label column, if it has another name; or columns of 0 and 1, one per label.

    Raises:
        DataError: No rows or labels, or an invalid row; names the split and the row.
    """
    place = Origin(name=f"data.{split}")
    if isinstance(source, Sized) and not len(source):
        raise DataError(
            f"{place.name}: no rows", expected="at least one", remedy="check the data that was passed"
        )
    table = open_table(source)
    columns = _label_columns(table.columns, label, place.name)
    examples: list[TokenisedExample] = []
    for number, values in table.rows:
        tokens = _token_row(values, place.at(number))
        if examples:
            _check_same_columns(examples[0].tokens, tokens, place.at(number))
        given = _given(values, columns, place.at(number))
        text = " ".join(map(str, tokens.input_ids))
        examples.append(TokenisedExample(row=number, text=text, label=given, origin=place, tokens=tokens))
    names = columns if len(columns) > 1 else table.label_names.get(columns[0])
    return TokenisedRows(origin=table.origin, examples=examples, label_names=names)


def token_rows(
    model: PTuningModel, examples: Sequence[TokenisedExample], labels: Sequence[Any]
) -> list[TokenRow]:
    """Tokenised rows as input of ``model``, each with its encoded label.

    Raises:
        DataError: a row that is too long for the model, or that another model's tokenizer made.
    """
    limit, words = model.max_text_tokens, model.backbone.vocab_size
    types = int(model.backbone.config.type_vocab_size) if model.backbone.uses_segments else None
    found = []
    for example, label in zip(examples, labels, strict=True):
        row = example.tokens
        if limit is not None and len(row) > limit:
            raise DataError(
                example.place,
                got=f"{len(row)} tokens",
                expected=f"at most {limit} next to the prompt",
                remedy=f"tokenise again with truncation=True, max_length={limit} (token ids are not "
                f"truncated "
                "here: the special token at the end would be lost)",
            )
        _check_range(example, "input_ids", row.input_ids, words)
        if types is not None and row.token_type_ids is not None:
            _check_range(example, "token_type_ids", row.token_type_ids, types)
        found.append(
            TokenRow(
                input_ids=row.input_ids,
                token_type_ids=row.token_type_ids if types is not None else None,
                segment_ids=row.segment_ids if model.needs_segments else None,
                label=label,
            )
        )
    return found


def _check_range(example: TokenisedExample, column: str, ids: Sequence[int], size: int) -> None:
    for found in (min(ids), max(ids)):
        if not 0 <= found < size:
            raise DataError(
                f"{example.place}, {column!r}",
                got=found,
                expected=f"0 to {size - 1}, the ids that the backbone has",
                remedy="tokenise with the backbone's own tokenizer (model.tokenizer)",
            )


# Rows --------------------------------------------------------------------------------------------


def _label_columns(columns: Sequence[str], label: str | Sequence[str] | None, place: str) -> tuple[str, ...]:
    """The label column; or several columns of 0 and 1, one per label."""
    wanted = LABEL_NAMES if label is None else label_columns(columns, label, (), place)
    if label is not None and len(wanted) > 1 and all(name in columns for name in wanted):
        return wanted
    for name in wanted:
        if name in columns:
            return (name,)
    raise DataError(
        f"{place}: the columns are {listing(columns, 40)}",
        expected=f"the labels in {listing(wanted)}",
        remedy="add them next to 'input_ids', or name their column with columns={'label': …}",
    )


def _given(values: Mapping[str, Any], columns: Sequence[str], place: str) -> Any:
    """The label or labels of a row, unchanged."""
    if len(columns) == 1:
        return _plain(values.get(columns[0]))
    on = {name: switch(_plain(values.get(name))) for name in columns}
    for name in columns:
        if on[name] is None:
            raise DataError(
                f"{place}, label column {name!r}",
                got=shortened(values.get(name)),
                expected="0 or 1",
                remedy="correct or remove the row",
            )
    return tuple(name for name in columns if on[name])


def _token_row(values: Mapping[str, Any], place: str) -> TokenRow:
    ids = _integers(values, "input_ids", place)
    if not ids:
        raise DataError(
            f"{place}: 'input_ids' is empty", expected="at least one token", remedy="remove the row"
        )
    others = {}
    for column in ("attention_mask", "token_type_ids", "segment_ids"):
        others[column] = _integers(values, column, place) if values.get(column) is not None else None
        if (found := others[column]) is not None and len(found) != len(ids):
            raise DataError(
                f"{place}, {column!r}",
                got=f"{len(found)} values",
                expected=f"{len(ids)}, one for each of 'input_ids'",
                remedy="take both from one call of the tokenizer",
            )
    own = _own_tokens(others["attention_mask"] or [1] * len(ids), place)
    types, segments = others["token_type_ids"], others["segment_ids"]
    return TokenRow(
        input_ids=ids[own],
        token_type_ids=None if types is None else types[own],
        segment_ids=None if segments is None else segments[own],
    )


def _own_tokens(mask: list[int], place: str) -> slice:
    """The range of a row's tokens without padding."""
    if 1 not in mask or not set(mask) <= {0, 1}:
        raise DataError(
            f"{place}, 'attention_mask'",
            got=shortened(mask),
            expected="1 for every token and 0 for padding",
            remedy="remove the row, or take the mask from the tokenizer",
        )
    own = slice(mask.index(1), len(mask) - mask[::-1].index(1))
    if 0 in mask[own]:
        raise DataError(
            f"{place}: 'attention_mask' has a 0 between its ones",
            expected="padding only at the ends",
            remedy="remove the token there, or take the mask from the tokenizer",
        )
    return own


def _integers(values: Mapping[str, Any], column: str, place: str) -> list[int]:
    found = _plain(values.get(column))
    if not isinstance(found, tuple) or not all(isinstance(item, Integral) for item in found):
        raise DataError(
            f"{place}, {column!r}",
            got=shortened(found),
            expected="a flat list of whole numbers",
            remedy="tokenise every row, without return_tensors",
        )
    return [int(item) for item in found]


def _plain(value: Any) -> Any:
    """Tensors and arrays as Python values; lists as tuples, like the labels of an example."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(value) if isinstance(value, list) else value


def _check_same_columns(first: TokenRow, row: TokenRow, place: str) -> None:
    for column in ("token_type_ids", "segment_ids"):
        if (getattr(first, column) is None) != (getattr(row, column) is None):
            raise DataError(
                f"{place}: {column!r} is in some rows and not in others",
                expected="it in all or none",
                remedy="tokenise all rows in the same way",
            )
