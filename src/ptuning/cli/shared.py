"""Options that commands share, and what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ptuning.cli.options import Parser

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
        help="read the adapter_model.bin of an old PEFT, with torch's restricted unpickler, where there are "
        "no safetensors",
    )


def add_columns(parser: Parser, *, label: bool) -> None:
    """Which columns of a file to read."""
    parser.add_argument("--text", type=str | None, help="column of the text; found by name")
    parser.add_argument("--text_b", type=str | None, help="column of a pair's second text; found by name")
    if label:
        parser.add_argument("--label", type=str | None, help="column of the label; found by name")
        parser.add_argument("--label_separator", type=str | None, help="splits a cell into several labels")


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
