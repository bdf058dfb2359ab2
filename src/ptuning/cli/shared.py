"""Options that commands share, and what they mean."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from ptuning.cli.options import Parser, leaves
from ptuning.data.options import ReadOptions
from ptuning.training.config import DataConfig
from ptuning.visible import visible

if TYPE_CHECKING:
    from ptuning.model.ptuning import PTuningModel


def add_model(parser: Parser) -> None:
    """The adapter, and how to hold its backbone."""
    parser.add_argument("adapter", type=str, help="adapter folder, or its name on the Hub")
    parser.add_argument("--revision", type=str | None, help="branch, tag or commit of the adapter on the Hub")
    parser.add_argument(
        "--backbone",
        type=str | None,
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


def add_reading(parser: Parser, *, label: bool) -> None:
    """How a source is read: the options of :class:`ReadOptions`, as ``--data.text`` and as ``--text``."""
    for option in leaves(DataConfig, "data."):
        name = option.key.removeprefix("data.")
        if name in ReadOptions.__annotations__ and (label or not name.startswith("label")):
            parser.add_argument(f"--{option.key}", f"--{name}", **option.argument())


def reading(given: Any) -> ReadOptions:
    """What the options of :func:`add_reading` say; what was not given is left out."""
    return cast(ReadOptions, dict(getattr(given, "data", None) or {}))


def tell(notes: Sequence[str]) -> None:
    """Say what was detected about a source, on standard error."""
    for note in notes:
        print(f"note: {visible(note)}", file=sys.stderr)


def add_too_long(parser: Parser) -> None:
    """What becomes of a text that does not fit."""
    parser.add_argument(
        "--too_long", choices=["truncate", "error"], default="truncate", help="cut long texts, or refuse them"
    )


def load_model(given: Any) -> PTuningModel:
    """The model that the options of :func:`add_model` name, on its device."""
    from accelerate import Accelerator

    from ptuning.model.ptuning import PTuningModel
    from ptuning.training.run import precision

    device = Accelerator(cpu=given.device == "cpu").device
    model = PTuningModel.from_pretrained(
        given.adapter,
        backbone=given.backbone,
        revision=given.revision,
        dtype=precision(given.precision, device),
        allow_pickle=given.allow_pickle,
    )
    return model.to(device).eval()
