"""The model card: task, metrics, backbone and usage of an adapter.

It is generated from the :class:`~ptuning.adapters.record.Adapter`, without placeholders. The front matter
follows https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ptuning.adapters.calibrated import LEFT_OUT, calibration_changes
from ptuning.adapters.calibrated import RECORD as CALIBRATION
from ptuning.adapters.peft_format import why_not_peft
from ptuning.adapters.record import Adapter, installed_versions
from ptuning.visible import visible

SPLIT_OFF = "split off"
"""The source in ``extra["data"]`` of rows that were split off from the training rows."""

_SHOWN_LABELS = 50
_DIGITS = 12
"""Of a digest, as the card shows it."""
_USELESS = "It did not learn: it is not better than a constant answer, beyond chance. Do not use it."
_BASELINE = "baseline"


def model_card(adapter: Adapter, *, name: str = "adapter", versions: Mapping[str, str] | None = None) -> str:
    """The model card as Markdown with YAML front matter.

    Args:
        adapter: The adapter to describe.
        name: The folder or Hub repository, for the examples.
        versions: Package versions; the installed ones if ``None``.
    """
    sections = (
        f"# {_words(name)}",
        _summary(adapter),
        "## Task\n\n" + "\n".join(_task(adapter)),
        _metrics(adapter),
        _probabilities(adapter),
        "## How to use\n\n" + _usage(adapter, name),
        "## Data\n\n" + ("\n".join(_data(adapter)) or "The training data was not recorded."),
        "## Training\n\n" + ("\n".join(_training(adapter)) or "The training options were not recorded."),
        "## Prompt\n\n" + "\n".join(_prompt(adapter)),
        "## Backbone\n\n" + "\n".join(_facts(adapter.backbone)),
        "## Versions\n\n" + "\n".join(_facts(versions or installed_versions())),
        "## Licence\n\n" + _licence(adapter),
    )
    return f"---\n{_front_matter(adapter, name)}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


# ------------------------------------------------------------------------------------ front matter


def _front_matter(adapter: Adapter, name: str) -> str:
    base = visible(str(adapter.backbone.get("name")))
    data = ModelCardData(
        license=visible(_license(adapter) or "unknown"),
        library_name="ptuning",
        base_model=base if _is_hub_id(base) else None,
        base_model_relation="adapter" if _is_hub_id(base) else None,
        datasets=_datasets(adapter) or None,
        pipeline_tag="text-classification",
        tags=[
            "ptuning",
            "prompt-tuning",
            "p-tuning-v2" if adapter.deep else "p-tuning",
            adapter.task.problem_type,
        ],
        model_name=visible(name),
        eval_results=_eval_results(adapter) or None,
    )
    return data.to_yaml().strip()


def _eval_results(adapter: Adapter) -> list[EvalResult]:
    """The Hub's ``model-index``: metrics on rows that were not used for training."""
    found: list[EvalResult] = []
    for split in ("test", "validation"):
        source = visible(_measured_on(adapter, split) or "")
        found += [
            EvalResult(
                task_type="text-classification",
                dataset_type=(_dataset_id(source) if source else None) or "custom",
                dataset_name=source or "the task's own data",
                dataset_split=split,
                metric_type=visible(metric),
                metric_value=value,
            )
            for metric, value in finite_numbers(adapter.metrics.get(split)).items()
        ]
    return found


def _datasets(adapter: Adapter) -> list[str]:
    """The Hub data sets used for training and evaluation, without local files."""
    named = (source for source in _sources(adapter).values() if source.startswith("hf:"))
    return [visible(name) for name in dict.fromkeys(filter(None, map(_dataset_id, named)))]


def _measured_on(adapter: Adapter, split: str) -> str | None:
    """The source of a split: ``extra["dataset"]`` if set, otherwise as recorded."""
    said = adapter.extra.get("dataset")
    if isinstance(said, str) and said:
        return said
    sources = _sources(adapter)
    return sources.get(split) or (sources.get("train") if split == "validation" else None)


def _dataset_id(source: str) -> str | None:
    """The Hub data set named by ``hf:NAME[/CONFIG][:SPLIT]`` or an id."""
    if source.startswith("hf:"):
        return "/".join(source.removeprefix("hf:").partition(":")[0].split("/")[:2])
    return source if _is_hub_id(source) else None


def _is_hub_id(name: str) -> bool:
    return bool(re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name, re.ASCII)) and not Path(name).is_dir()


# ---------------------------------------------------------------------------------------- sections


def _summary(adapter: Adapter) -> str:
    where = "in every layer" if adapter.deep else "at the input"
    if adapter.deep and (first := adapter.prompt.get("first_layer", 0)):
        where = f"in layers {first} and above"
    learned = adapter.extra.get("learned", adapter.extra.get("beats_baseline", True))  # the older name
    return (
        f"A prompt of {adapter.virtual_tokens} virtual tokens {where}, trained with "
        f"{'PEFT' if 'imported' in adapter.extra else 'ptuning'} for {adapter.task.kind.title} of "
        f"{'pairs of texts' if adapter.task.pair else 'texts'} with the frozen backbone "
        f"{_code(adapter.backbone.get('name'))}. {_size(adapter)}"
        + ("" if learned else f"\n\n**{_USELESS}**")
    )


def _size(adapter: Adapter) -> str:
    prompt, head = adapter.prompt_parameters, adapter.head_parameters
    parts = f"{prompt:,} in the prompt" + (
        f", {head:,} in the head" if head else "; the head was not trained"
    )
    total = adapter.backbone.get("num_parameters")
    share = f" That is {(prompt + head) / total:.3%} of the backbone's {total:,}." if total else ""
    return f"It has {prompt + head:,} trained parameters: {parts}.{share}"


def _task(adapter: Adapter) -> Iterator[str]:
    task = adapter.task
    yield f"- kind: {task.kind.title}"
    yield f"- input: {'two texts' if task.pair else 'one text'}"
    limit = f"{task.max_length} tokens" if task.max_length else "the backbone's limit"
    yield f"- maximum input length: {limit}"
    if task.max_windows > 1:
        yield (
            f"- longer texts: read in up to {task.max_windows} overlapping windows "
            f"({task.window_overlap:.0%} overlap), whose logits are averaged"
        )
    if not task.labels:
        yield f"- output: {task.kind.output(task)}"
        return
    words: Mapping[str, Any] = {}
    if template := adapter.prompt.get("template"):
        yield f"- template: {_code(template)}; its words are added to each text"
    if adapter.cloze is not None:
        head = adapter.prompt["head"]
        words = head["verbalizer"]
        yield f"- template: {_code(head['template'])}; the backbone's language model head scores a word there"
    yield f"- labels, in the order of the logits ({task.num_labels}):"
    for label in task.labels[:_SHOWN_LABELS]:
        said = ", ".join(map(_code, words.get(str(label), ())))
        yield f"  - {_code(label if isinstance(label, str) else json.dumps(label))}" + (
            f": {said}" if said else ": its own name" if adapter.cloze is not None else ""
        )
    if (more := task.num_labels - _SHOWN_LABELS) > 0:
        yield f"  - and {more} more, listed in `ptuning.json`"


def _metrics(adapter: Adapter) -> str:
    """A table with one row per metric and one column per split, the baseline last."""
    splits = {name: finite_numbers(adapter.metrics.get(name)) for name in _columns(adapter)}
    rows = list(dict.fromkeys(metric for values in splits.values() for metric in values))
    if not rows:
        return ""
    lines = ["| metric | " + " | ".join(map(_cell, splits)) + " |", "|---|" + "---:|" * len(splits)]
    for metric in rows:
        cells = (_number(values[metric]) if metric in values else "" for values in splits.values())
        lines.append(f"| {_cell(metric)} | " + " | ".join(cells) + " |")
    note = ""
    if _BASELINE in splits:
        rule = str(adapter.metrics.get("baseline_rule") or adapter.task.kind.baseline_rule)
        note = f"\n\nThe baseline is a constant answer: {_words(rule)}."
        if "loss" in splits[_BASELINE] and adapter.task.labels:
            note += " Its loss is for predicting each label with its frequency in the training rows."
    return "## Metrics\n\n" + "\n".join(lines) + note


def _columns(adapter: Adapter) -> list[str]:
    given = [name for name, values in adapter.metrics.items() if finite_numbers(values)]
    order = {"test": 0, "validation": 1, _BASELINE: 3}
    return sorted(given, key=lambda name: order.get(name, 2))


def _probabilities(adapter: Adapter) -> str:
    """Whether probabilities were calibrated, and what that changed."""
    task, record = adapter.task, adapter.extra.get(CALIBRATION)
    if isinstance(said := adapter.extra.get(LEFT_OUT), str):
        return f"## Probabilities\n\n{_words(said)}."
    if not task.is_calibrated:
        return ""
    count = record.get("rows") if isinstance(record, Mapping) else None
    rows = f", fitted to {count:,} rows" if isinstance(count, int) else ""
    found = (
        f"Probabilities are calibrated: logits are divided by the temperature {task.temperature:.4g}{rows}"
    )
    if task.thresholds:
        found += ", and each label has a threshold of its own (`task.thresholds` in `ptuning.json`)"
    lines = [f"## Probabilities\n\n{found}."]
    if changes := list(calibration_changes(adapter)):
        lines.append("\n| rows | figure | before | after |\n|---|---|---:|---:|")
        lines += (
            f"| {split} | {_cell(name.replace('_', ' '))} | {_number(before)} | {_number(after)} |"
            for split, name, before, after in changes
        )
    return "\n".join(lines)


def _usage(adapter: Adapter, name: str) -> str:
    called, pair = json.dumps(name), adapter.task.pair
    loaded = f"from ptuning import PTuningModel\n\nmodel = PTuningModel.from_pretrained({called})"
    text = '{"text": "some text", "text_pair": "another"}' if pair else '"some text"'
    classify = f"from ptuning import pipeline\n\nclassify = pipeline({called})\nprint(classify({text}))"
    file = "pairs.csv" if pair else "texts.txt"
    contents = "a CSV file with the columns `text` and `text_b`" if pair else "a file with one text per line"
    return (
        "Install ptuning with `pip install ptuning`.\n\n"
        f"Predictions in Python:\n\n```python\n{classify}\n```\n\n"
        f"The model as a `torch.nn.Module`:\n\n```python\n{loaded}\n```\n\n"
        f"On the command line, for {contents}:\n\n"
        f"```bash\nptuning predict {shlex.quote(visible(_line(name)))} --input {file}\n```\n\n"
        f"{_peft_usage(adapter, name)}"
    )


def _peft_usage(adapter: Adapter, name: str) -> str:
    reason = why_not_peft(adapter)
    if reason is not None:
        return f"PEFT cannot load this adapter: {_words(reason)}."
    base = json.dumps(adapter.backbone.get("name"))
    options = f"revision={json.dumps(revision)}, " if (revision := adapter.backbone.get("revision")) else ""
    return (
        "With PEFT:\n\n```python\nfrom peft import PeftModel\n"
        "from transformers import AutoModelForSequenceClassification\n\n"
        f"base = AutoModelForSequenceClassification.from_pretrained(\n"
        f"    {base}, {options}num_labels={adapter.task.num_labels}, ignore_mismatched_sizes=True\n)\n"
        f"model = PeftModel.from_pretrained(base, {json.dumps(name)})\n```"
    )


def _data(adapter: Adapter) -> Iterator[str]:
    """One line per split: the source and number of its rows."""
    recorded = adapter.extra.get("data")
    if not isinstance(recorded, Mapping):
        return
    for split, facts in recorded.items():
        if not isinstance(facts, Mapping):
            continue
        source, rows = facts.get("source"), facts.get("rows")
        count = f"{rows:,} rows" if isinstance(rows, int) else "rows not counted"
        if source == SPLIT_OFF:
            yield f"- {_words(split)}: {count}, split off from the training rows"
        else:
            yield f"- {_words(split)}: {_code(source)} ({count})"


def _sources(adapter: Adapter) -> dict[str, str]:
    """The source of each split, except those that were split off."""
    recorded = adapter.extra.get("data")
    named = {
        str(split): facts.get("source")
        for split, facts in (recorded.items() if isinstance(recorded, Mapping) else ())
        if isinstance(facts, Mapping)
    }
    return {
        split: source for split, source in named.items() if isinstance(source, str) and source != SPLIT_OFF
    }


def _training(adapter: Adapter) -> Iterator[str]:
    if start := started_from(adapter.extra):
        yield f"- started from: {_words(start)}"
    for part in ("fit", "rates"):
        recorded = adapter.extra.get(part)
        if isinstance(recorded, Mapping):
            known = {key: value for key, value in recorded.items() if value is not None}
            yield from _facts(known if part == "fit" else {"learning rates used": known})


def started_from(extra: Mapping[str, Any]) -> str | None:
    """The adapter that the training started from, in words; ``None`` if none is recorded.

    Args:
        extra: Of an :class:`Adapter`.
    """
    recorded = extra.get("init_from")
    if not isinstance(recorded, Mapping) or "name" not in recorded:
        return None
    words = [f"{recorded['name']}, version {str(recorded.get('sha256'))[:_DIGITS]}"]
    data = recorded.get("data")
    train = data.get("train") if isinstance(data, Mapping) else None
    if isinstance(train, Mapping) and isinstance(train.get("rows"), int):
        words.append(f"trained on {train['rows']:,} rows of {train.get('source')}")
    words.append("with its head" if recorded.get("head") == "kept" else "with a new head")
    return ", ".join(words)


def _license(adapter: Adapter) -> str | None:
    said = adapter.extra.get("license")
    return said if isinstance(said, str) and said else None


def _licence(adapter: Adapter) -> str:
    said = _license(adapter)
    own = f"This adapter: {_code(said)}." if said else "The owner of this adapter has not stated a licence."
    return f"{own} The licences of the backbone and of the data also apply."


def _prompt(adapter: Adapter) -> Iterator[str]:
    yield from _facts(adapter.prompt)
    yield f"- shape: `{list(adapter.prompt_tensor.shape)}`"
    if adapter.units is not None:
        yield f"- shape of the virtual units: `{list(adapter.units.shape)}`"


# ------------------------------------------------------------------------------------------ pieces


def _facts(values: Mapping[str, Any]) -> Iterator[str]:
    """One line per fact, without those that are ``None``."""
    for key, value in values.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            inner = ", ".join(f"{_words(k)} {_code(v)}" for k, v in value.items())
            yield f"- {_words(str(key).replace('_', ' '))}: {inner}"
        else:
            yield f"- {_words(str(key).replace('_', ' '))}: {_code(value)}"


def finite_numbers(values: Any) -> dict[str, float]:
    """The finite numbers among ``values``; other entries of a user's dictionary are not metrics."""
    if not isinstance(values, Mapping):
        return {}
    found = {str(k): v.item() if hasattr(v, "item") else v for k, v in values.items()}
    return {k: v for k, v in found.items() if type(v) in (int, float) and abs(v) <= sys.float_info.max}


def _number(value: float) -> str:
    return (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:.4f}"
        if abs(value) >= 1e-4 or not value
        else f"{value:.2e}"
    )


def _line(text: Any) -> str:
    return " ".join(str(text).split())


_PLAIN = re.compile(r"(?!.*(www\.|://|\W_|_\W|_$))[^\W_]([\w '\".,;:%/()+=-]*[\w'\".%)])?", re.IGNORECASE)
"""Text without Markdown syntax: no tag, link, emphasis, code or URL."""


def _words(text: Any) -> str:
    """Untrusted text for the card: plain words unchanged, anything with Markdown syntax as code."""
    line = _line(text)
    return line if _PLAIN.fullmatch(line) and line == visible(line) else _code(line)


def _cell(text: Any) -> str:
    """The same for a table cell, with vertical bars escaped."""
    return _words(_line(text).replace("|", "\\x7c"))


def _code(value: Any) -> str:
    """Inline code for any text, including backticks and line breaks."""
    text = visible(str(value))
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if text[:1] in ("`", " ", "") or text[-1:] in ("`", " ") else ""
    return f"{fence}{pad}{text}{pad}{fence}"
