"""What an adapter is and how it was trained, in words, from its record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ptuning.adapters.card import finite_numbers, started_from
from ptuning.adapters.record import Adapter
from ptuning.adapters.seal import SELF
from ptuning.visible import visible

_DIGITS = 12


def record_of(adapter: Adapter) -> dict[str, Any]:
    """The parts of a record that :func:`facts_of` reads, for an adapter without one."""
    return {"prompt": dict(adapter.prompt), "backbone": dict(adapter.backbone), "extra": dict(adapter.extra)}


def facts_of(record: Mapping[str, Any]) -> dict[str, str]:
    """The facts of an adapter, by name. Anyone may write ``extra``: what is not as ptuning writes it is left
    out.

    Args:
        record: Its ``ptuning.json``, or :func:`record_of` an adapter.
    """
    return {name: visible(text) for name, text in _facts(record)}


def _facts(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if SELF in record:
        yield "digest", str(record[SELF])[:_DIGITS]
    if "created" in record:
        yield "created", str(record["created"])
    backbone, extra = record["backbone"], record.get("extra", {})
    yield "backbone", _backbone(backbone)
    yield "prompt", ", ".join(_prompt(record["prompt"]))
    for split, facts in _mapping(extra.get("data")).items():
        if isinstance(facts, Mapping):
            rows = facts.get("rows", "?")
            count = f"{rows:,}" if isinstance(rows, int) else str(rows)
            yield f"{split} rows", f"{count} ({facts.get('source', '?')})"
    yield from _fit(_mapping(extra.get("fit")), _mapping(extra.get("rates")))
    if chose := _mapping(_mapping(extra.get("recipe")).get("chose")):
        yield "chosen by the recipe", ", ".join(f"{name} {value}" for name, value in chose.items())
    if start := started_from(extra):
        yield "started from", start
    if versions := _mapping(record.get("versions")):
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())


def _backbone(facts: Mapping[str, Any]) -> str:
    revision = facts.get("revision")
    return f"{facts.get('name')} ({facts.get('model_type')}, {facts.get('num_layers')} layers)" + (
        f", revision {str(revision)[:_DIGITS]}" if revision else ""
    )


def _prompt(prompt: Mapping[str, Any]) -> Iterator[str]:
    tokens = prompt.get("num_virtual_tokens")
    yield f"{prompt.get('depth')}, {tokens} virtual tokens" if tokens else str(prompt.get("depth"))
    words = {
        "placement": "placement {}",
        "first_layer": "from layer {}",
        "pooling": "pooling {}",
        "num_virtual_units": "{} virtual units",
        "num_queries": "{} queries",
        "template": "template {!r}",
    }
    for name, text in words.items():
        if prompt.get(name):
            yield text.format(prompt[name])
    if head := _mapping(prompt.get("head")):
        yield f"cloze head with the template {head.get('template')!r}"


def _fit(fit: Mapping[str, Any], rates: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, words in {"num_train_epochs": "epochs", "batch_size": "batch size", "seed": "seed"}.items():
        if name in fit:
            yield words, str(fit[name])
    if known := finite_numbers(rates):
        yield "learning rates", ", ".join(f"{part} {rate:g}" for part, rate in known.items())


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
