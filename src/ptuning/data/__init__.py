"""Reads files, streams, Hub data sets and rows in memory into checked examples, labels and splits.

::

    loaded = load_examples("train.csv")                          # or "hf:stanfordnlp/sst2:train"
    task = infer_task(loaded.examples, names=loaded.label_names)
    train, validation = split_off(loaded.examples, task, fraction=0.1, seed=0)
    targets = encode_labels(train, task)

    for example in stream_examples("new.csv", pair=task.pair).examples:
        ...

The layers, from top to bottom: :mod:`dataset` and :mod:`checks` (its result: :mod:`report`); :mod:`splits`;
:mod:`labels`; :mod:`examples`; :mod:`tables` and its readers, and :mod:`columns`; :mod:`reading`,
:mod:`options` and :mod:`places`. Importing this package is fast: pyarrow and ``datasets`` are imported when
a source needs them.
"""

from ptuning.data.checks import check
from ptuning.data.columns import Columns, find_columns
from ptuning.data.dataset import Loaded, Stream, load_examples, stream_examples
from ptuning.data.examples import Example, as_examples
from ptuning.data.labels import encode_labels, infer_task
from ptuning.data.options import ReadOptions
from ptuning.data.places import Origin, Problem
from ptuning.data.report import Baseline, Finding, LabelCount, Lengths, Report, SplitReport
from ptuning.data.splits import split_off
from ptuning.data.tables import Format, Source, Table, open_table

__all__ = [
    "Baseline",
    "Columns",
    "Example",
    "Finding",
    "Format",
    "LabelCount",
    "Lengths",
    "Loaded",
    "Origin",
    "Problem",
    "ReadOptions",
    "Report",
    "Source",
    "SplitReport",
    "Stream",
    "Table",
    "as_examples",
    "check",
    "encode_labels",
    "find_columns",
    "infer_task",
    "load_examples",
    "open_table",
    "split_off",
    "stream_examples",
]
