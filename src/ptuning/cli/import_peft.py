"""``ptuning import-peft``: converts a prompt trained with PEFT to a ptuning adapter, with labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptuning.cli.options import Parser
from ptuning.cli.shared import add_pickle

if TYPE_CHECKING:
    from ptuning.task import Task


def parser() -> Parser:
    made = Parser(
        prog="ptuning import-peft",
        usage="ADAPTER OUTPUT [options]",
        description="Convert a P_TUNING, PROMPT_TUNING or PREFIX_TUNING adapter of PEFT to a ptuning adapter "
        "with the same logits, plus labels, the backbone's fingerprint and a model card.",
        epilog="example: ptuning import-peft someone/mrpc-p-tuning mrpc --labels 'different,same' --pair",
    )
    made.add_argument("adapter", type=str, help="PEFT adapter folder or Hub id")
    made.add_argument("output", type=str, help="folder to write")
    made.add_argument("--revision", type=str, help="branch, tag or commit of the adapter on the Hub")
    made.add_argument(
        "--backbone", type=str, help="Hub id or folder of the backbone (default: as recorded by PEFT)"
    )
    made.add_argument(
        "--labels",
        type=str,
        help="label names in the order of the logits, separated by commas (default: those of the backbone)",
    )
    made.add_argument("--pair", action="store_true", help="the task has two texts per row")
    add_pickle(made)
    return made


def main(argv: Sequence[str]) -> None:
    given = parser().parse_args(list(argv))
    from dataclasses import replace

    from ptuning import adapters
    from ptuning.errors import AdapterError
    from ptuning.model.ptuning import PTuningModel

    adapters.check_destination(given.output)  # before the backbone is loaded, not after
    folder = adapters.locate(given.adapter, revision=given.revision, allow_pickle=given.allow_pickle)
    if adapters.is_adapter(folder):
        raise AdapterError(f"{given.adapter} is an adapter of ptuning already", remedy="use it as it is")
    model = PTuningModel.from_pretrained(folder, backbone=given.backbone, allow_pickle=given.allow_pickle)
    model.set_task(replace(_named(model.task, given.labels), pair=given.pair))
    print(model.save_pretrained(given.output))


def _named(task: Task, labels: str | None) -> Task:
    from dataclasses import replace

    from ptuning.errors import ConfigError

    if labels is None:
        return task
    names = tuple(name.strip() for name in labels.split(","))
    if len(names) != len(task.labels):
        raise ConfigError(
            "--labels",
            got=f"{len(names)} names",
            expected=f"{task.num_labels}, one per logit of the adapter's head"
            if task.labels
            else f"none, because a {task.kind.title} has no labels",
        )
    if not all(names):
        raise ConfigError("--labels", got=f"an empty name in {labels!r}", expected="one name per logit")
    return replace(task, labels=names)
