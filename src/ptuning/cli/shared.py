"""Options that several commands share."""

from __future__ import annotations

import math
import os
import sys
from argparse import _ActionsContainer
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptuning.cli.options import Parser, leaves
from ptuning.data.options import OF_LABELS, ReadOptions
from ptuning.errors import ConfigError
from ptuning.model.config import Engine
from ptuning.paths import local_path
from ptuning.training.config import DataConfig
from ptuning.validation import validated
from ptuning.visible import visible

if TYPE_CHECKING:
    import torch

    from ptuning.model.backbone import Backbone
    from ptuning.model.ptuning import PTuningModel

GIB = 1 << 30


def add_model(parser: Parser, *, optional: bool = False) -> None:
    """Add options for the adapter and its backbone.

    Args:
        optional: Whether the adapter may be left out.
    """
    parser.add_argument("adapter", nargs="?" if optional else None, help="adapter folder or Hub id")
    parser.add_argument("--revision", type=str, help="branch, tag or commit of the adapter on the Hub")
    parser.add_argument(
        "--backbone",
        type=str,
        help="Hub id or folder of the backbone (default: as recorded in the adapter)",
    )
    add_device(parser)
    add_pickle(parser)


def add_device(options: _ActionsContainer) -> None:
    """Add options for what the backbone is computed on, and in which precision."""
    options.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16"],
        default="auto",
        help="precision of the backbone; auto is bf16 if the device supports it well (default: auto)",
    )
    options.add_argument(
        "--device",
        choices=["auto", "cpu"],
        default="auto",
        help="auto is an accelerator if there is one (default: auto)",
    )


def add_pickle(parser: Parser) -> None:
    """Add the option to read files of old versions of PEFT."""
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read adapter_model.bin (old PEFT versions) and pytorch_model.bin (the backbone) with torch's "
        "restricted unpickler if there are no safetensors files",
    )


def add_ray(parser: _ActionsContainer) -> None:
    """Add the option to run on a Ray cluster."""
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run on a Ray cluster: HOST:PORT of its head, auto for the one that runs on this machine (or of "
        "RAY_ADDRESS), or local to start one here (default: without Ray)",
    )


def add_abstain_below(parser: Parser) -> None:
    """Add the option to give no label to uncertain rows."""
    parser.add_argument(
        "--abstain_below",
        type=float,
        metavar="PROBABILITY",
        help="give no label to a row if its label is less probable than this, such as 0.7; with several "
        "labels per row, if the yes or no for one of them is (default: every row gets its label)",
    )


def check_abstain_below(value: float | None) -> None:
    """Refuse a value that is not a probability.

    Raises:
        ConfigError: it is not from 0 to 1.
    """
    if value is not None and not 0 <= value <= 1:
        raise ConfigError("--abstain_below", got=value, expected="a probability from 0 to 1")


def add_packed_memory(parser: Parser) -> None:
    """Add the option for the memory of packed weights."""
    parser.add_argument(
        "--packed_memory",
        type=float,
        metavar="GIB",
        help="GiB for packed copies of the backbone's weights, which make it faster on a CPU in bf16; 0 for "
        f"none (default: {Engine().packed_memory:g})",
    )


def bytes_of(given: Any, name: str, *, least: int = 1) -> int | None:
    """The bytes of an option that is a number of GiB; ``None`` if it is not given.

    Raises:
        ConfigError: fewer than ``least`` bytes, or no number.
    """
    value: float | None = getattr(given, name)
    if value is None:
        return None
    if not (math.isfinite(value) and value * GIB >= least):
        expected = f"a number of GiB{' above 0' if least else ', 0 or more'}"
        raise ConfigError(f"--{name}", got=value, expected=expected)
    return int(value * GIB)


def pack(backbone: Backbone, given: Any) -> None:
    """Give a backbone the memory for packed weights that the options say.

    Raises:
        ConfigError: it is not a number of GiB.
    """
    if bytes_of(given, "packed_memory", least=0) is not None:
        backbone.engine = replace(backbone.engine, packed_memory=given.packed_memory)


def add_data(parser: Parser, *, label: bool, more: Iterable[str] = ()) -> None:
    """Add the options for reading a source, each as ``--data.text`` and as ``--text``, and ``more``.

    Args:
        label: Whether labels are read.
        more: Fields of :class:`DataConfig` in addition to those of :class:`ReadOptions`.
    """
    read = {name for name in ReadOptions.__annotations__ if label or name not in OF_LABELS}
    group = parser.add_argument_group("data options (the prefix 'data.' may be left out)")
    for option in leaves(DataConfig, "data."):
        name = option.key.removeprefix("data.")
        if name in {*read, *more}:
            group.add_argument(f"--{option.key}", f"--{name}", **option.argument())


def data_of(given: Any, source: str) -> DataConfig:
    """The data configuration from the options of :func:`add_data`.

    Raises:
        ConfigError: an invalid option.
    """
    values = {key[5:]: value for key, value in vars(given).items() if key.startswith("data.")}
    config: DataConfig = validated(DataConfig, {"train": source, **values}, "data")
    return config


def check_page(option: str, page: str, rows: str | None, folders: Iterable[str | Path]) -> None:
    """Refuse to write a page over what it is made of.

    Args:
        option: That names the page.
        rows: The source of the rows.
        folders: Adapters, as far as they are folders.

    Raises:
        ConfigError: the page would replace the rows, an adapter or one of its files, or its folder does not
            exist.
    """
    from ptuning.adapters import OWN_FILES

    target = local_path(page, option).resolve()
    check_folder_of(option, page, target)
    own = [Path(folder).resolve() / name for folder in folders for name in ("", *OWN_FILES)]
    data = [] if rows is None else [Path(rows).resolve()]
    for what, files in (("the rows that are read", data), ("the adapter", own)):
        if target in files:
            raise ConfigError(option, got=f"{page}, which is {what}", remedy="choose another file")
    if data and target.parent == data[0] and target.exists():
        raise ConfigError(option, got=f"{page}, a file of the rows", remedy="choose another file")


def check_folder_of(option: str, name: str, file: Path) -> None:
    """Refuse to write a file where there is no folder, before anything is computed for it.

    Args:
        option: That names the file.
        name: As the user wrote it.

    Raises:
        ConfigError: the folder does not exist.
    """
    if not os.path.isdir(file.parent):
        raise ConfigError(
            f"{option} {name}",
            got=f"the folder {file.parent}, which does not exist",
            remedy="make the folder first, or choose another file",
        )


def print_notes(notes: Iterable[str]) -> None:
    """Print notes about a source to standard error."""
    for note in notes:
        print(f"{getattr(note, 'level', 'note')}: {visible(note)}", file=sys.stderr)


def load_model(given: Any, *, like: PTuningModel | None = None) -> PTuningModel:
    """Load the model named by the options of :func:`add_model` to its device.

    Args:
        like: A loaded model whose backbone it shares.
    """
    from ptuning.model.ptuning import PTuningModel

    device, dtype = device_of(given)
    model = PTuningModel.from_pretrained(
        given.adapter,
        backbone=given.backbone if like is None else like.backbone,
        tokenizer=None if like is None else like.tokenizer,
        revision=given.revision,
        dtype=dtype,
        allow_pickle=given.allow_pickle,
    )
    return model.to(device).eval()


def device_of(given: Any) -> tuple[torch.device, torch.dtype | None]:
    """Where the options of :func:`add_model` say to compute, and in which precision."""
    from accelerate import Accelerator

    from ptuning.training.job import precision

    device = Accelerator(cpu=given.device == "cpu").device
    return device, precision(given.precision, device)
