"""``ptuning demo``: trains on data that ptuning ships, and compares with other methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ptuning.cli.options import Parser

if TYPE_CHECKING:
    from ptuning.cli.demo_baselines import Peer
    from ptuning.training.records import TrainResult

DATA = Path(__file__).parent.parent / "demo_data"
SENTENCES = (
    "the courier says delivered but there is nothing at my door",
    "I was charged twice this month, please check my card",
    "love the new design, the checkout is so much quicker now",
)


def parser() -> Parser:
    made = Parser(
        prog="ptuning demo",
        usage="[options]",
        description="Train a classifier of support messages (570 rows, six intents) on the embedded "
        "MiniLM, and "
        "compare it with the baseline, logistic regression on frozen embeddings, training only the head, and "
        "full fine-tuning. Needs no data and no network.",
    )
    made.add_argument(
        "--output", type=str, default="demo-adapter", help="folder of the adapter (default: demo-adapter)"
    )
    made.add_argument(
        "--epochs", type=int, default=12, help="passes over the 378 training rows (default: 12)"
    )
    made.add_argument(
        "--seed", type=int, default=0, help="random seed: initialisation, shuffling, dropout (default: 0)"
    )
    return made


def main(argv: Sequence[str]) -> None:
    given = parser().parse_args(list(argv))
    from ptuning.cli.demo_baselines import fine_tune, frozen_embeddings, head_only
    from ptuning.cli.tables import plain_console, print_diagnosis
    from ptuning.inference.predictor import Predictor
    from ptuning.model.ptuning import PTuningModel
    from ptuning.training.config import TrainConfig
    from ptuning.training.console import ConsoleCallback
    from ptuning.training.interrupt import Interrupted
    from ptuning.training.run import train

    console = plain_console()
    config = TrainConfig.checked(
        {
            "data": {name: str(DATA / f"{name}.csv") for name in ("train", "validation", "test")},
            "output": given.output,
            "fit": {"num_train_epochs": given.epochs, "seed": given.seed},
        }
    )
    console.print("1. a prompt on the frozen MiniLM", style="bold")
    try:
        result = train(config, restart=True, callbacks=[ConsoleCallback(console)])
    except Interrupted:  # its own message is about --resume
        raise Interrupted("interrupted; ptuning demo always starts from scratch") from None
    console.print(
        "2. for comparison: regression on embeddings, training only the head, full fine-tuning", style="bold"
    )
    peers = [frozen_embeddings(config), head_only(config), fine_tune(config)]
    _table(console, result, peers)
    print_diagnosis(result, console)
    console.print("3. three sentences", style="bold")
    predictor = Predictor(model=PTuningModel.from_pretrained(given.output))
    for sentence, found in zip(SENTENCES, predictor(SENTENCES), strict=True):
        chance = max((share for _, share in found.probabilities), default=0.0)
        console.print(f"  {found.label:<10} {chance:4.0%}  {sentence}", highlight=False)
    size = sum(file.stat().st_size for file in Path(given.output).iterdir())
    console.print(
        f"\nThe adapter is {given.output}/, {size / 1e3:.0f} kB. With your own CSV (columns text, label):\n\n"
        "  ptuning check-data my.csv\n"
        "  ptuning train my.csv --output my-adapter\n"
        "  ptuning predict my-adapter --input new.csv\n",
        highlight=False,
    )


def _table(console: object, result: TrainResult, peers: Sequence[Peer]) -> None:
    from rich.console import Console
    from rich.table import Table

    assert isinstance(console, Console)
    table = Table(title=f"test set, {result.setting['rows']['test']} rows", title_justify="left")
    table.add_column("method")
    for name in ("trained parameters", "accuracy", "macro F1", "seconds"):
        table.add_column(name, justify="right")
    floor = result.baseline["test"]
    table.add_row(result.baseline_rule, "0", f"{floor['accuracy']:.3f}", f"{floor['f1']:.3f}", "")
    for peer in peers:
        found = peer.metrics
        figures = (f"{found['accuracy']:.3f}", f"{found['f1']:.3f}", f"{peer.seconds:.0f}")
        table.add_row(peer.name, f"{peer.trained:,}", *figures)
    mine = result.metrics["test"]
    table.add_row(
        "ptuning, deep prompt",
        f"{result.trained:,}",
        f"{mine['accuracy']:.3f}",
        f"{mine['f1']:.3f}",
        f"{result.seconds:.0f}",
        style="bold",
    )
    console.print(table)
