"""Rows of data sets on the Hub, of ``datasets.Dataset`` and of mappings in memory.

``hf:NAME[/CONFIG][:SPLIT]`` names a data set. ``NAME`` is ``glue`` or ``nyu-mll/glue``; ``hf:A/B`` means the
data set ``A/B`` or, if there is none, the configuration ``B`` of ``A``. ``SPLIT`` may be anything that
``datasets`` understands (``train``, ``train[:10%]``); a data set with only one split needs none.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from ptuning.data.places import first_line, listing, shortened
from ptuning.data.reading import Reading, Rows
from ptuning.errors import ConfigError, DataError


def _datasets() -> Any:
    return importlib.import_module("datasets")  # lazily: it takes a second and brings pandas


def load_hub(source: str) -> Any:
    """The data set that ``hf:NAME[/CONFIG][:SPLIT]`` names, memory-mapped by ``datasets``."""
    candidates, split = parse_hub(source)
    failures: list[str] = []
    cause: Exception | None = None
    for name, config in candidates:
        try:
            found = _datasets().load_dataset(name, config, split=split)
        except Exception as error:  # of the builder, the network or the Hub
            failures.append(
                f"{name!r}{f' with configuration {config!r}' if config else ''}: {first_line(error)}"
            )
            cause = cause or error
        else:
            return _only_split(found, source)
    raise DataError(
        f"{source} cannot be loaded ({'; '.join(failures)})",
        expected="a data set on the Hub or in the local cache, written hf:NAME[/CONFIG][:SPLIT]",
        remedy="check the name, configuration and split, and the network (HF_HUB_OFFLINE must not be "
        "set to fetch one; a private one needs: hf auth login), or give a file",
    ) from cause


def parse_hub(source: str) -> tuple[list[tuple[str, str | None]], str | None]:
    """The candidates to try in order, as (name, configuration), and the split."""
    path, colon, split = source.removeprefix("hf:").partition(":")
    parts = path.split("/")
    if not all(parts) or len(parts) > 3 or (colon and not split):
        raise ConfigError(
            f"{source!r} does not name a data set",
            expected="hf:NAME[/CONFIG][:SPLIT], for example hf:nyu-mll/glue/mrpc:train",
        )
    if len(parts) == 3:
        return [(f"{parts[0]}/{parts[1]}", parts[2])], split or None
    tries: list[tuple[str, str | None]] = [(path, None)]
    return (tries if len(parts) == 1 else [*tries, (parts[0], parts[1])]), split or None


def _only_split(found: Any, source: str) -> Any:
    if not isinstance(found, Mapping):
        return found
    if len(found) == 1:
        return next(iter(found.values()))
    raise DataError(
        f"{source} has {len(found)} splits ({listing(found)})",
        expected="one",
        remedy=f"name it: {source}:{next(iter(found))}",
    )


def memory_rows(source: Iterable[Mapping[str, Any]], reading: Reading) -> Rows:
    """The rows of a ``datasets.Dataset`` or of an iterable of mappings."""
    datasets = sys.modules.get("datasets")  # a Dataset cannot exist before its module was imported
    if datasets is not None and isinstance(source, (datasets.Dataset, datasets.IterableDataset)):
        return dataset_rows(source, reading)
    if isinstance(source, (Mapping, bytes)) or not isinstance(source, Iterable):
        raise DataError(
            f"the source is a {type(source).__name__}",
            expected="a path, a binary stream, a datasets.Dataset or an iterable of mappings",
            remedy="of several splits, pass one",
        )
    return _mappings(source, reading)


def dataset_rows(dataset: Any, reading: Reading) -> Rows:
    """The rows of a ``datasets.Dataset``, with class names."""
    reading.label_names = class_names(dataset.features)
    return named_rows(_mappings(dataset.with_format(None), reading), reading)


def _mappings(source: Iterable[Mapping[str, Any]], reading: Reading) -> Rows:
    for number, row in enumerate(source, 1):
        if isinstance(row, Mapping):
            yield number, dict(row)
        else:
            reading.bad_row(
                number,
                "mapping",
                DataError(
                    got=f"a {type(row).__name__}: {shortened(row)}",
                    expected="a mapping from column names to values",
                    remedy="for a pandas frame pass frame.to_dict('records')",
                ),
            )


def class_names(features: Any) -> dict[str, tuple[str, ...]]:
    """The class names of every ``ClassLabel`` column, and of every list of them."""
    found: dict[str, tuple[str, ...]] = {}
    for column, feature in (features or {}).items():
        inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", feature)
        if type(inner).__name__ == "ClassLabel" and inner.names:
            found[column] = tuple(inner.names)
    return found


def named_rows(rows: Rows, reading: Reading) -> Rows:
    """Rows whose class numbers are replaced by the names in ``reading.label_names``."""
    for number, row in rows:
        try:
            for column, names in reading.label_names.items():
                row[column] = _class_name(row[column], names, column)
        except DataError as error:
            reading.bad_row(number, "class", error)
        else:
            yield number, row


def _class_name(value: Any, names: tuple[str, ...], column: str) -> Any:
    if isinstance(value, list):
        return [_class_name(item, names, column) for item in value]
    if value is None or value == -1:  # -1 is the Hub's convention for hidden test labels
        return None
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    raise DataError(
        f"column {column!r}",
        got=f"class {value!r}",
        expected=f"a number below {len(names)} ({listing(names)})",
        remedy="correct the features or the rows of the data set",
    )
