"""``ptuning inspect``: shows the task, prompt, backbone and metrics of an adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ptuning.cli.options import Parser
from ptuning.cli.shared import add_pickle

if TYPE_CHECKING:
    from ptuning.adapters import Adapter
    from ptuning.task import Task


def parser() -> Parser:
    made = Parser(
        prog="ptuning inspect",
        usage="ADAPTER [options]",
        description="Show the task, prompt, backbone and metrics of an adapter, and optionally check whether "
        "it fits a backbone.",
    )
    made.add_argument("adapter", type=str, help="adapter folder or Hub id")
    made.add_argument("--revision", type=str, help="branch, tag or commit of the adapter on the Hub")
    made.add_argument("--backbone", type=str, help="Hub id or folder of a backbone to check it against")
    add_pickle(made)
    made.add_argument("--json", action="store_true", help="print everything as JSON")
    return made


def main(argv: Sequence[str]) -> None:
    given = parser().parse_args(list(argv))
    from ptuning import adapters

    folder = adapters.locate(given.adapter, revision=given.revision, allow_pickle=given.allow_pickle)
    adapter = adapters.load(folder, allow_pickle=given.allow_pickle)
    if given.json:
        from ptuning.visible import json_text

        if given.backbone is not None:
            _check(given.backbone, adapter)

        facts = {
            "task": adapter.task.to_dict(),
            "prompt": dict(adapter.prompt),
            "backbone": dict(adapter.backbone),
            "metrics": dict(adapter.metrics),
            "calibration": adapter.extra.get("calibration"),
            "parameters": _parameters(adapter),
            **({"init_from": start} if (start := adapter.extra.get("init_from")) else {}),
            "peft": adapters.why_not_peft(adapter) or "readable",
            **({} if given.backbone is None else {"fits": given.backbone}),
        }
        print(json_text(facts, indent=1))
        return
    _print(adapter)
    if given.backbone is not None:
        from ptuning.cli.tables import plain_console

        _check(given.backbone, adapter)
        plain_console().print(f"fits {given.backbone}", highlight=False, soft_wrap=True)


def _check(name: str, adapter: Adapter) -> None:
    from ptuning.model.embedded import canonical
    from ptuning.model.loading import check_backbone, load

    task = adapter.task
    backbone = load(canonical(name), num_labels=task.num_labels, problem_type=task.problem_type)
    check_backbone(backbone, adapter)


def _known(fact: object) -> object:
    return "?" if fact is None else fact


def _parameters(adapter: Adapter) -> int:
    return adapter.prompt_parameters + adapter.head_parameters


def _calibration(task: Task) -> str:
    if not task.is_calibrated:
        return "none: probabilities as the model was trained to give them"
    thresholds = ", ".join(f"{each:.3g}" for each in task.thresholds)
    return f"temperature {task.temperature:.4g}" + (f", thresholds {thresholds}" if thresholds else "")


def _cloze(head: Mapping[str, Any]) -> str:
    """A cloze head, in a line."""
    from ptuning.visible import visible

    words = "; ".join(f"{label}: {', '.join(its)}" for label, its in head["verbalizer"].items())
    return visible(f"cloze, template {head['template']!r}, words {words or 'the names of the labels'}")


def _print(adapter: Adapter) -> None:
    from rich.table import Table

    from ptuning import adapters
    from ptuning.cli.tables import metrics_table, plain_console
    from ptuning.visible import visible

    task, prompt, backbone = adapter.task, adapter.prompt, adapter.backbone
    table = Table(show_header=False, box=None)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    rows = {
        "task": f"{task.problem_type}, {'pairs' if task.pair else 'single texts'}",
        "labels": ", ".join(visible(str(label)) for label in task.labels) or task.kind.output(task),
        **(
            {}
            if task.max_windows == 1
            else {"long texts": f"up to {task.max_windows} windows, overlap {task.window_overlap:.0%}"}
        ),
        "calibration": _calibration(task),
        "prompt": f"{prompt['depth']}, shape {list(adapter.prompt_tensor.shape)}, "
        + (
            f"placement {prompt.get('placement') or 'front'}"
            if prompt["depth"] == "input"
            else f"from layer {prompt.get('first_layer') or 0}, pooling {prompt.get('pooling') or 'native'}"
            + (f", {units} virtual units" if (units := prompt.get("num_virtual_units")) else "")
            + (f", {queries} queries" if (queries := prompt.get("num_queries")) else "")
            + (f", template {template!r}" if (template := prompt.get("template")) else "")
        ),
        **({"head": _cloze(prompt["head"])} if prompt.get("head") else {}),
        "encoder": f"{prompt.get('encoder', {}).get('kind', 'embedding')}",
        "parameters": f"{_parameters(adapter):,}",
        "backbone": f"{_known(backbone['name'])} ({_known(backbone['model_type'])}, "
        f"{_known(backbone['num_layers'])} layers)",
        "fingerprint": (backbone["fingerprint"] or "")[:16] or "unknown: PEFT does not record it",
        "PEFT": adapters.why_not_peft(adapter) or "can load this folder",
    }
    if start := adapters.started_from(adapter.extra):
        rows["started from"] = visible(start)
    for name, value in rows.items():
        table.add_row(name, value)
    console = plain_console()
    console.print(table)
    found = {name: adapters.finite_numbers(adapter.metrics.get(name)) for name in ("validation", "test")}
    if found := {name: values for name, values in found.items() if values}:
        split = "test" if "test" in found else "validation"
        rule = str(adapter.metrics.get("baseline_rule", ""))
        floor = adapters.finite_numbers(adapter.metrics.get("baseline"))
        console.print(metrics_table(found, {split: floor}, rule))
