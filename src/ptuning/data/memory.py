"""Rows in memory, in any common form, as mappings from column names to values.

**A tuple has columns, anything else has rows**: ``(texts, labels)`` and ``(texts, texts_b, labels)`` have one
sequence per column; a list (or any other iterable) has one item per row, which is a mapping, or a tuple
``(text, label)``, ``(text, text_b, label)`` or ``((text, text_b), label)``. Data frames and tables may be
from pandas, polars, pyarrow or any library that supports Arrow; none of these libraries is imported here
unless the program has imported it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from ptuning.data.places import listing, shortened
from ptuning.errors import ConfigError, DataError

SPLITS = ("train", "validation", "test")
_ALIASES = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "validation"}
_FORMS = (
    "a path, an hf: name, a data frame, a pyarrow table, a datasets.Dataset, (texts, labels), or a list of "
    "mappings or of (text, label) tuples"
)
_EXAMPLE = '{"train": …, "validation": …}'


def named_splits(data: Any) -> dict[str, Any]:
    """The splits of a data set by name; a data set without splits is the training split.

    Args:
        data: A mapping from ``train``, ``validation`` and ``test`` to sources (such as a ``DatasetDict``;
            ``None`` for a missing split), or one source.

    Raises:
        ConfigError: a split with another name, or no training split.
    """
    if not isinstance(data, Mapping) or _are_columns(data):
        return {"train": data}
    if odd := sorted(str(name) for name in data if name not in SPLITS):
        raise ConfigError(
            "data",
            got=f"a split {odd[0]!r}",
            expected="train, validation and test",
            remedy=_remedy(odd[0], list(data)),
        )
    found = {name: source for name, source in data.items() if source is not None or name == "train"}
    if "train" not in found:
        raise ConfigError("data: there is no split 'train'", expected=f"a mapping {_EXAMPLE}")
    return found


def _remedy(odd: str, names: Sequence[Any]) -> str:
    meant = _ALIASES.get(odd) or next(iter(get_close_matches(odd, SPLITS, n=1)), None)
    if meant is not None and meant not in names:
        return f"did you mean {meant!r}? Pass a mapping {_EXAMPLE}"
    wanted = [name for name in SPLITS if name in names]
    return f"pass a mapping of the splits to use: {{name: data[name] for name in {wanted or ['train']}}}"


def in_memory(source: Any, name: str = "the rows", *, labelled: bool = True) -> Any:
    """``source`` in a form that :func:`~ptuning.data.open_table` accepts; unchanged if it already is.

    Args:
        source: A source of any form.
        name: Its name in messages.
        labelled: Whether a tuple of two is a text and its label rather than two texts.

    Raises:
        DataError: not a source of rows, columns of different lengths, or no rows.
    """
    if isinstance(source, str | os.PathLike) or hasattr(source, "read"):
        return source
    if _of("datasets", source, "Dataset", "IterableDataset"):
        return source
    if _is_frame(source) and not _of("pandas", source, "DataFrame"):
        source = _arrow(source)
        if b"huggingface" in (source.schema.metadata or {}):
            return importlib.import_module("datasets").Dataset(source)  # with class labels
    columns = _columns(source, name, labelled)
    if columns is not None:
        return _rows(columns, name)
    if _one_column(source):
        if labelled:
            raise DataError(name, got=f"one column, a {_kind(source)}", expected=_FORMS)
        raise DataError(
            name,
            got=f"a {_kind(source)}",
            expected="a table",
            remedy="pass its values as a list of texts",
        )
    if _by_number(source):
        source = [source[index] for index in range(len(source))]  # torch's Dataset
    if isinstance(source, Mapping | bytes) or not isinstance(source, Iterable):
        if isinstance(source, Mapping) and source:
            names = listing(source, 6)
            raise DataError(
                name,
                got=f"a mapping of {names}",
                expected="one data set, or its columns as sequences of the same length",
                remedy="of several splits, pass one",
            )
        got = "None" if source is None else f"the {_kind(source)} {shortened(source, 40)}"
        raise DataError(name, got=got, expected=_FORMS)
    if isinstance(source, Sequence) or hasattr(source, "tolist"):
        _refuse_none(source, name)
        return [_row(row, f"{name}, row {number}", labelled) for number, row in enumerate(source, 1)]
    return (_row(row, f"{name}, row {number}", labelled) for number, row in enumerate(source, 1))


def texts_of(given: Any) -> list[Any] | None:
    """The values of a column, such as a pandas ``Series`` or an array; ``None`` if it is not a column."""
    return _values(given) if _one_column(given) else None


def is_table(given: Any) -> bool:
    """Whether ``given`` has named columns: a data frame, a table, a data set, a mapping or a list of them."""
    if isinstance(given, Mapping):
        return _are_columns(given)
    if isinstance(given, list):
        return bool(given) and isinstance(given[0], Mapping)
    return _of("datasets", given, "Dataset", "IterableDataset") or _is_frame(given)


# Kinds -------------------------------------------------------------------------------------------


def _of(module: str, value: Any, *names: str) -> bool:
    """Whether ``value`` is an instance of a library's class, without importing the library."""
    found = sys.modules.get(module)
    kinds = tuple(kind for name in names if isinstance(kind := getattr(found, name, None), type))
    return isinstance(value, kinds)


def _is_frame(value: Any) -> bool:
    if _of("pandas", value, "DataFrame") or _of("polars", value, "DataFrame", "LazyFrame"):
        return True
    return hasattr(value, "__arrow_c_stream__") and not _one_column(value)


def _one_column(value: Any) -> bool:
    """Whether ``value`` is a column: a series, a one-dimensional array, a tensor."""
    if isinstance(value, str | bytes | Mapping | list | tuple | type):
        return False
    if hasattr(value, "ndim"):
        return bool(value.ndim == 1) and hasattr(value, "__len__")
    return (
        _of("polars", value, "Series")
        or _of("pyarrow", value, "Array", "ChunkedArray")
        or type(value).__name__ == "Column"  # of a datasets.Dataset
    )


def _by_number(value: Any) -> bool:
    """Whether ``value`` has only ``__getitem__`` and ``__len__``, like torch's ``Dataset``."""
    able = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    return able and not isinstance(value, Iterable | type)


def _kind(value: Any) -> str:
    return type(value).__name__


def _are_columns(value: Mapping[Any, Any]) -> bool:
    """Whether a mapping has the columns of a table rather than the splits of a data set."""
    if not value or any(name in SPLITS for name in value):
        return False
    return all(_one_column(each) or isinstance(each, list | tuple) for each in value.values())


# Columns -----------------------------------------------------------------------------------------

_Columns = list[tuple[str, list[Any]]]


def _columns(source: Any, name: str, labelled: bool) -> _Columns | None:
    """The columns of a source that has columns; ``None`` if it has rows."""
    if _of("pandas", source, "DataFrame"):
        return [(str(title), _values(source.iloc[:, at])) for at, title in enumerate(source.columns)]
    if _of("pyarrow", source, "Table"):
        return [(title, source.column(at).to_pylist()) for at, title in enumerate(source.column_names)]
    if isinstance(source, Mapping) and _are_columns(source):
        return [(str(title), _values(values)) for title, values in source.items()]
    if isinstance(source, tuple) and len(source) in (2, 3) and not _are_rows(source):
        return _given_columns(source, name, labelled)
    return None


def _arrow(frame: Any) -> Any:
    """A pyarrow table from any object that supports Arrow, such as polars' data frames."""
    if _of("polars", frame, "LazyFrame"):
        frame = frame.collect()
    return importlib.import_module("pyarrow").table(frame)


def _are_rows(source: tuple[Any, ...]) -> bool:
    return all(isinstance(item, Mapping) for item in source)


def _given_columns(source: tuple[Any, ...], name: str, labelled: bool) -> _Columns:
    """``(texts, labels)``, ``(texts, texts_b, labels)``; texts may be pairs."""
    titles = ["text", "label"] if len(source) == 2 else ["text", "text_b", "label"]
    if not labelled:
        titles = ["text", "text_b"]
    wrong = next((item for item in source if isinstance(item, str | Mapping) or not _has_values(item)), None)
    if wrong is not None or any(item is None for item in source) or len(titles) != len(source):
        got = f"a tuple with the {_kind(wrong)} {shortened(wrong, 40)}" if wrong is not None else "None"
        raise DataError(
            name,
            got=got,
            expected=f"({', '.join(titles)}) with one sequence of each, all of the same length",
            remedy="pass rows as a list: [(text, label), …]",
        )
    if all(isinstance(item, tuple) and len(item) == len(source) for item in source):
        raise DataError(
            name,
            got=f"a tuple of {len(source)} tuples of {len(source)}, which could be rows or columns",
            remedy="write rows as a list, [(text, label), …], and columns as lists, ([text, …], [label, …])",
        )
    columns = [(title, _values(item)) for title, item in zip(titles, source, strict=True)]
    first = columns[0][1]
    if len(source) == 2 and labelled and first and all(_is_pair(item) for item in first):
        pair = [("text", [item[0] for item in first]), ("text_b", [item[1] for item in first])]
        return [*pair, columns[1]]
    return columns


def _has_values(item: Any) -> bool:
    return _one_column(item) or isinstance(item, Iterable) or hasattr(item, "tolist")


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple | list) and len(item) == 2 and all(isinstance(text, str) for text in item)


def _values(column: Any) -> list[Any]:
    """A column's values as Python values, ``None`` if missing."""
    if _of("pandas", column, "Series", "Index"):
        return _of_pandas(column)
    for method in ("to_pylist", "to_list", "tolist"):
        if hasattr(column, method):
            return list(getattr(column, method)())
    return list(column)


def _of_pandas(column: Any) -> list[Any]:
    missing = list(column.isna())
    values = column.astype(object).to_list()
    if column.dtype.kind == "f" and any(
        missing
    ):  # whole numbers with missing values, which pandas stores as floats
        there = [value for value, gone in zip(values, missing, strict=True) if not gone]
        if all(float(value).is_integer() for value in there):
            values = [value if gone else int(value) for value, gone in zip(values, missing, strict=True)]
    return [None if gone else value for value, gone in zip(values, missing, strict=True)]


def _rows(columns: _Columns, name: str) -> list[dict[str, Any]]:
    if repeated := [title for title, count in Counter(title for title, _ in columns).items() if count > 1]:
        raise DataError(
            f"{name}: more than one column is named {listing(repeated)}",
            expected="distinct names",
            remedy="rename them",
        )
    sizes = {title: len(values) for title, values in columns}
    if len(set(sizes.values())) > 1:
        counts = " and ".join(f"{size} of {title!r}" for title, size in sizes.items())
        raise DataError(
            name, got=counts, expected="the same number of each", remedy="give every row all of its values"
        )
    found = [
        dict(zip(sizes, values, strict=True)) for values in zip(*(each for _, each in columns), strict=True)
    ]
    _refuse_none(found, name)
    return found


def _refuse_none(rows: Any, name: str) -> None:
    if not len(rows):
        raise DataError(f"{name}: no rows", expected="at least one", remedy="check the data that was passed")


# Rows --------------------------------------------------------------------------------------------


def _row(row: Any, place: str, labelled: bool) -> Any:
    """A row as a mapping from column names; tuples, lists and numpy rows by position."""
    if isinstance(row, Mapping):
        return row
    given = (row,) if isinstance(row, str) else row.tolist() if hasattr(row, "tolist") else row
    if isinstance(given, tuple | list):
        values = [*given[0], *given[1:]] if given and _is_pair(given[0]) else list(given)
        titles = ("text", "text_b", "label")[: len(values)]
        if labelled and len(values) == 2:
            titles = ("text", "label")
        if 0 < len(values) <= (3 if labelled else 2) and (len(values) > 1 or not labelled):
            return dict(zip(titles, values, strict=True))
    wanted = "(text, label), (text, text_b, label)" if labelled else "a text, (text, text_b)"
    raise DataError(
        place,
        got=f"the {_kind(row)} {shortened(row)}",
        expected=f"{wanted} or a mapping from column names to values",
        remedy="pass columns as a tuple: (texts, labels)" if labelled else None,
    )
