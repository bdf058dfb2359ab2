"""``ptuning export-peft``: converts an adapter to PEFT's format, or says why that is not possible."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ptuning.cli.options import Parser


def parser() -> Parser:
    made = Parser(
        prog="ptuning export-peft",
        usage="ADAPTER OUTPUT [options]",
        description="Write an adapter that peft.PeftModel.from_pretrained loads, with the same logits. "
        "If PEFT "
        "cannot represent it, the error names the training option that would change that.",
        epilog="example: ptuning export-peft prices prices-for-peft",
    )
    made.add_argument("adapter", type=str, help="adapter folder or Hub id")
    made.add_argument("output", type=str, help="folder to write")
    made.add_argument("--revision", type=str, help="branch, tag or commit of the adapter on the Hub")
    return made


def main(argv: Sequence[str]) -> None:
    given = parser().parse_args(list(argv))
    from ptuning import adapters
    from ptuning.errors import AdapterError

    folder = adapters.locate(given.adapter, revision=given.revision)
    if not adapters.is_adapter(folder) and adapters.is_peft(folder):
        raise AdapterError(f"{given.adapter} is a PEFT adapter already", remedy="use it as it is")
    adapter = adapters.load(folder)
    print(adapters.save(adapters.for_peft(adapter), given.output))
    if (note := adapters.left_out_for_peft(adapter)) is not None:
        print(f"note: {note}", file=sys.stderr)
