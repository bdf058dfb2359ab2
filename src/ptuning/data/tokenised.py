"""Data sets that were tokenised already: rows with ``input_ids`` go to the model as they are.

This is what ``dataset.map(tokenize)`` leaves and what ``transformers.Trainer`` takes: ``input_ids``,
perhaps ``attention_mask``, ``token_type_ids`` and ``segment_ids``, and ``labels`` (or ``label``), which are
class indices or the task's own labels. Texts beside them are not read again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
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
from ptuning.task import Label, Task

#: In the order in which they are taken: what models read comes before what transformers' collators rename.
LABEL_NAMES = ("labels", "label", "label_ids")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenisedExample(Example):
    """A row that came as token ids; its ``text`` spells them, so that equal rows are seen to be equal."""

    tokens: TokenRow


@dataclass(frozen=True, kw_only=True)
class TokenisedRows:
    """Every row of a tokenised source, unpadded, each with a label of the task."""

    origin: Origin
    examples: list[TokenisedExample]


def is_tokenised(source: Any) -> bool:
    """Whether a source in memory has token ids: a ``datasets.Dataset``, or a list of mappings."""
    columns: Any = None
    if hasattr(source, "column_names"):  # a Dataset, which may not know them while it streams
        columns = source.column_names or next(iter(source), None)
    elif isinstance(source, Sequence) and not isinstance(source, str) and source:
        columns = source[0]
    return isinstance(columns, list | Mapping) and "input_ids" in columns


def load_tokenised(
    sources: Mapping[str, Source], task: Task, *, label: str | Sequence[str] | None = None
) -> dict[str, TokenisedRows]:
    """The rows of tokenised splits, by the split's name.

    Labels are read alike in all of them: if every one is a label of the task, they are that; otherwise
    whole numbers are class indices, and rows of C zeros and ones say which of several labels apply.

    Args:
        sources: Splits for which :func:`is_tokenised`.
        task: What the labels mean.
        label: The column of the labels, if it has another name; or columns of 0 and 1, one for each label.

    Raises:
        DataError: No rows or labels, or a row that no tokenizer makes; split and row are named.
    """
    splits = {name: _read(name, source, label, task) for name, source in sources.items()}
    meant = _meant({name: split.examples for name, split in splits.items()}, task)
    return {name: replace(split, examples=meant[name]) for name, split in splits.items()}


def token_rows(
    model: PTuningModel, examples: Sequence[TokenisedExample], labels: Sequence[Any]
) -> list[TokenRow]:
    """What ``model`` takes of rows that came as token ids, each with its encoded label.

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
                f"{example.place}: {len(row)} tokens, and at most {limit} fit beside the prompt; tokenise "
                f"again with truncation=True, max_length={limit} (token ids are not cut here: the "
                "special token at the end would be lost)"
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
                f"{example.place}: {column!r} holds {found}, expected 0 to {size - 1}, which is what the "
                "backbone knows; tokenise with the backbone's own tokenizer (model.tokenizer)"
            )


# Rows --------------------------------------------------------------------------------------------


def _read(name: str, source: Source, label: str | Sequence[str] | None, task: Task) -> TokenisedRows:
    """A split's rows, their labels as they stand there."""
    place = Origin(name=f"data.{name}")
    if isinstance(source, Sized) and not len(source):
        raise DataError(
            f"{place.name}: no rows, expected at least one; check what the data set was made from"
        )
    table = open_table(source)
    columns = _label_columns(table.columns, label, place.name)
    column = columns[0]
    classes = None if task.is_regression else table.label_names.get(column)
    if classes is not None and any(name in task.labels for name in classes):
        classes = None  # the task's own names, which may stand in another order there
    examples: list[TokenisedExample] = []
    for number, values in table.rows:
        tokens = _token_row(values, place.at(number))
        if examples:
            _check_same_columns(examples[0].tokens, tokens, place.at(number))
        given = _given(values, columns, place.at(number))
        if classes is not None:
            given = _numbers(given, classes)
        text = " ".join(map(str, tokens.input_ids))
        examples.append(TokenisedExample(row=number, text=text, label=given, origin=place, tokens=tokens))
    return TokenisedRows(origin=table.origin, examples=examples)


def _label_columns(columns: Sequence[str], label: str | Sequence[str] | None, place: str) -> tuple[str, ...]:
    """The column of the labels; or several of 0 and 1, one for each label."""
    wanted = LABEL_NAMES if label is None else label_columns(columns, label, (), place)
    if label is not None and len(wanted) > 1 and all(name in columns for name in wanted):
        return wanted
    for name in wanted:
        if name in columns:
            return (name,)
    raise DataError(
        f"{place}: the columns are {listing(columns, 40)}, expected the labels in {listing(wanted)}; add "
        "them beside 'input_ids', or name their column with columns={'label': …}"
    )


def _given(values: Mapping[str, Any], columns: Sequence[str], place: str) -> Any:
    """The label, or labels, as they stand there."""
    if len(columns) == 1:
        return _plain(values.get(columns[0]))
    on = {name: switch(_plain(values.get(name))) for name in columns}
    for name in columns:
        if on[name] is None:
            raise DataError(
                f"{place}: the label's column {name!r} holds {shortened(values.get(name))}, expected 0 or 1; "
                "mend or remove the row"
            )
    return tuple(name for name in columns if on[name])


def _token_row(values: Mapping[str, Any], place: str) -> TokenRow:
    ids = _integers(values, "input_ids", place)
    if not ids:
        raise DataError(f"{place}: 'input_ids' holds no token, expected at least one; remove the row")
    others = {}
    for column in ("attention_mask", "token_type_ids", "segment_ids"):
        others[column] = _integers(values, column, place) if values.get(column) is not None else None
        if (found := others[column]) is not None and len(found) != len(ids):
            raise DataError(
                f"{place}: {column!r} has {len(found)} values, expected {len(ids)}, one for each of "
                "'input_ids'; take both from one call of the tokenizer"
            )
    own = _own_tokens(others["attention_mask"] or [1] * len(ids), place)
    types, segments = others["token_type_ids"], others["segment_ids"]
    return TokenRow(
        input_ids=ids[own],
        token_type_ids=None if types is None else types[own],
        segment_ids=None if segments is None else segments[own],
    )


def _own_tokens(mask: list[int], place: str) -> slice:
    """Where a row's own tokens stand: what a collator pads later is taken off here, on both sides."""
    if 1 not in mask or not set(mask) <= {0, 1}:
        raise DataError(
            f"{place}: 'attention_mask' is {shortened(mask)}, expected 1 for every token and 0 for padding; "
            "remove the row, or take the mask from the tokenizer"
        )
    own = slice(mask.index(1), len(mask) - mask[::-1].index(1))
    if 0 in mask[own]:
        raise DataError(
            f"{place}: 'attention_mask' has a 0 between its ones, expected padding at the ends alone; remove "
            "the token there, or take the mask from the tokenizer"
        )
    return own


def _integers(values: Mapping[str, Any], column: str, place: str) -> list[int]:
    found = _plain(values.get(column))
    if not isinstance(found, tuple) or not all(isinstance(item, Integral) for item in found):
        raise DataError(
            f"{place}: {column!r} is {shortened(found)}, expected a flat list of whole numbers; tokenise "
            "every row, without return_tensors"
        )
    return [int(item) for item in found]


def _plain(value: Any) -> Any:
    """Tensors and arrays as Python's own; lists as tuples, as an example's labels are."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(value) if isinstance(value, list) else value


def _check_same_columns(first: TokenRow, row: TokenRow, place: str) -> None:
    for column in ("token_type_ids", "segment_ids"):
        if (getattr(first, column) is None) != (getattr(row, column) is None):
            raise DataError(
                f"{place}: {column!r} is in some rows and not in others, expected it in all or none; "
                "tokenise them all in the same way"
            )


# Labels ------------------------------------------------------------------------------------------


def _numbers(label: Any, classes: Sequence[str]) -> Any:
    """Class numbers from a ``ClassLabel``'s names, for a task that does not know the names."""
    if isinstance(label, tuple):
        return tuple(_numbers(item, classes) for item in label)
    return classes.index(label) if label in classes else label


def _meant(splits: Mapping[str, list[TokenisedExample]], task: Task) -> dict[str, list[TokenisedExample]]:
    """The same rows, each with the task's label; ``encode_labels`` refuses what cannot be one."""
    found = dict(splits)
    pooled = [example for examples in splits.values() for example in examples]
    if task.problem_type == "multi_label_classification" and _are_switches(pooled, task):
        return {name: [_switched_on(each, task) for each in examples] for name, examples in splits.items()}
    if task.is_regression:
        return found
    items = {
        name: [item for each in examples if each.label is not None for item in _items(each.label)]
        for name, examples in splits.items()
    }
    numbers = [name for name, given in items.items() if all(type(item) is int for item in given)]
    own = {(type(label), label) for label in task.labels}  # because 1 == True
    if not {(int, item) for name in numbers for item in items[name]} <= own:
        found |= {name: [_named(example, task) for example in splits[name]] for name in numbers}
    return found


def _items(label: Any) -> tuple[Any, ...]:
    return label if isinstance(label, tuple) else (label,)


def _are_switches(examples: Sequence[TokenisedExample], task: Task) -> bool:
    """Whether every row is zeros and ones, which transformers takes for several labels: one a label."""
    rows = [example for example in examples if isinstance(example.label, tuple)]
    items = [item for row in rows for item in row.label or ()]
    if not items or not all(item in (0, 1) for item in items):
        return False
    odd = next((row for row in rows if len(row.label or ()) != task.num_labels), None)
    if odd is not None and any(isinstance(item, float) for item in items):  # which no label is
        raise DataError(
            f"{odd.place}: the label is {shortened(list(odd.label or ()))}, expected {task.num_labels} zeros "
            f"and ones, one for each of {listing(task.labels, 20)}; give every row all of them"
        )
    return odd is None


def _switched_on(example: TokenisedExample, task: Task) -> TokenisedExample:
    if not isinstance(example.label, tuple):
        return example
    named = zip(task.labels, example.label, strict=True)
    return replace(example, label=tuple(label for label, on in named if on))


def _named(example: TokenisedExample, task: Task) -> TokenisedExample:
    """With the label, or labels, that its class indices stand for."""
    if example.label is None:
        return example
    named: list[Label] = []
    for index in _items(example.label):
        if not 0 <= index < task.num_labels:
            raise DataError(
                f"{example.place}: the label {index} is no class, expected a number from 0 to "
                f"{task.num_labels - 1}, or one of {listing(task.labels, 20)}; correct the label, or make "
                "the model with as many labels as the data have"
            )
        named.append(task.labels[index])
    return replace(example, label=tuple(named) if isinstance(example.label, tuple) else named[0])
