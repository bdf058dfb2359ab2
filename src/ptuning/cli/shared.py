"""Options that commands share, and what they mean."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ptuning.cli.options import Parser, leaves
from ptuning.data.options import OF_LABELS, ReadOptions
from ptuning.training.config import DataConfig
from ptuning.validation import validated
from ptuning.visible import visible

if TYPE_CHECKING:
    from ptuning.model.ptuning import PTuningModel


def add_model(parser: Parser) -> None:
    """The adapter, and how to hold its backbone."""
    parser.add_argument("adapter", type=str, help="adapter folder, or its name on the Hub")
    parser.add_argument("--revision", type=str, help="branch, tag or commit of the adapter on the Hub")
    parser.add_argument(
        "--backbone",
        type=str,
        help="Hub id or folder, where the backbone is not where the adapter says",
    )
    parser.add_argument(
        "--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of the backbone"
    )
    parser.add_argument(
        "--device", choices=["auto", "cpu"], default="auto", help="'auto' takes an accelerator"
    )
    add_pickle(parser)


def add_pickle(parser: Parser) -> None:
    """What an old version of PEFT left."""
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read the adapter_model.bin of an old PEFT, and the pytorch_model.bin of a backbone that the "
        "adapter names, with torch's restricted unpickler, where there are no safetensors",
    )


def add_data(parser: Parser, *, label: bool, more: Iterable[str] = ()) -> None:
    """Options of ``data``, each as ``--data.text`` and as ``--text``: how a source is read, and ``more``.

    Args:
        label: Whether labels are read.
        more: Fields of :class:`DataConfig` beyond those of :class:`ReadOptions`.
    """
    read = {name for name in ReadOptions.__annotations__ if label or name not in OF_LABELS}
    for option in leaves(DataConfig, "data."):
        name = option.key.removeprefix("data.")
        if name in {*read, *more}:
            parser.add_argument(f"--{option.key}", f"--{name}", **option.argument())


def data_of(given: Any, source: str) -> DataConfig:
    """What the options of :func:`add_data` say of how ``source`` is read.

    Raises:
        ConfigError: an option, what was got, what was expected.
    """
    values = {key[5:]: value for key, value in vars(given).items() if key.startswith("data.")}
    config: DataConfig = validated(DataConfig, {"train": source, **values}, "data")
    return config


def tell(notes: Iterable[str]) -> None:
    """Say what was detected about a source, on standard error."""
    for note in notes:
        print(f"{getattr(note, 'level', 'note')}: {visible(note)}", file=sys.stderr)


def load_model(given: Any) -> PTuningModel:
    """The model that the options of :func:`add_model` name, on its device."""
    from accelerate import Accelerator

    from ptuning.model.ptuning import PTuningModel
    from ptuning.training.job import precision

    device = Accelerator(cpu=given.device == "cpu").device
    model = PTuningModel.from_pretrained(
        given.adapter,
        backbone=given.backbone,
        revision=given.revision,
        dtype=precision(given.precision, device),
        allow_pickle=given.allow_pickle,
    )
    return model.to(device).eval()
