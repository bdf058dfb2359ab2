"""The notebooks run from top to bottom in a real kernel, learn, and show one progress bar.

``python tests/test_notebooks.py --write`` runs them and keeps their outputs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).parent.parent
NAMES = ("sentence_pairs", "prompt_in_the_middle")
BETWEEN = "%reset -f"
FOUND = {
    "sentence_pairs": "print(json.dumps([result.metrics['test'], result.baseline['test'], data['test'][0]]))",
    "prompt_in_the_middle": "print(losses[0], losses[-1], accuracy(train), accuracy(test))",
}
"""By notebook: a cell after its last, for the test."""


class Recording(NotebookClient):
    """Remembers the outputs of each cell as they were sent, those that were replaced later, too."""

    def process_message(self, msg: Any, cell: NotebookNode, cell_index: int) -> Any:
        vars(self).setdefault("sent", []).append((cell_index, msg["msg_type"], msg["content"]))
        return super().process_message(msg, cell, cell_index)


def notebook(name: str) -> NotebookNode:
    return nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4)


@contextmanager
def kernel_environment(folder: Path) -> Iterator[None]:
    """Nothing of the user's own configuration, no network, no real data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PTUNING_DATA", raising=False)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")  # of tqdm: ipywidgets is not installed
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
            patch.setenv(name, str(folder / name))
        yield


def executed(folder: Path) -> tuple[dict[str, list[NotebookNode]], Recording, dict[str, int]]:
    """The cells of each notebook with their outputs, run one after the other in one kernel.

    Returns:
        The cells by notebook; the client; the index of each notebook's first cell.
    """
    cells: list[NotebookNode] = []
    starts: dict[str, int] = {}
    for name in NAMES:
        starts[name] = len(cells)
        cells += [*notebook(name).cells, new_code_cell(FOUND[name]), new_code_cell(BETWEEN)]
    everything = new_notebook(cells=cells)
    with kernel_environment(folder):
        client = Recording(
            everything,
            timeout=300,
            kernel_name="python3",
            coalesce_streams=True,
            resources={"metadata": {"path": str(folder)}},
        )
        client.execute()
    lengths = {name: len(notebook(name).cells) for name in NAMES}
    found = {name: everything.cells[starts[name] : starts[name] + lengths[name] + 1] for name in NAMES}
    return found, client, starts


def printed(cell: NotebookNode) -> str:
    return "".join(each.text for each in cell.outputs if each.output_type == "stream")


def cell_with(cells: list[NotebookNode], text: str) -> int:
    (found,) = [
        number for number, cell in enumerate(cells) if cell.cell_type == "code" and text in cell.source
    ]
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq", "ignore::DeprecationWarning:jupyter_client")
def test_the_notebooks_run_learn_and_show_one_bar(tmp_path: Path) -> None:
    found, client, starts = executed(tmp_path)

    pairs = found["sentence_pairs"]
    reached, floor, _ = json.loads(printed(pairs[-1]))
    assert reached["accuracy"] > floor["accuracy"] + 0.08
    assert reached["loss"] < floor["loss"]
    first, last, trained, tested = map(float, printed(found["prompt_in_the_middle"][-1]).split())
    assert last < 0.5 * first
    assert trained > 0.9
    assert tested > 0.75  # half of the rows are of each class

    for cells in found.values():
        for cell in cells:
            if cell.cell_type == "code":
                assert len(cell.outputs) <= 4, cell.outputs
                assert len(printed(cell)) < 3000
                assert "\r" not in printed(cell)
                assert all(each.get("name") != "stderr" for each in cell.outputs), cell.outputs

    training = cell_with(pairs, "ptuning.fit(")
    bars = [each for each in pairs[training].outputs if each.output_type == "display_data"]
    (bar,) = bars  # it vanished at the end of the run
    assert bar.data["text/plain"] == ""
    assert printed(pairs[training]).count("validation loss") == 3
    index = starts["sentence_pairs"] + training
    shown = [
        content["data"]["text/plain"]
        for at, kind, content in client.sent  # type: ignore[attr-defined]
        if at == index and kind in ("display_data", "update_display_data")
    ]
    assert any("training" in each and "/30" in each and "loss" in each for each in shown)
    assert len(shown) < 1000

    using = cell_with(pairs, "progress=True")
    assert [each.data["text/plain"] for each in pairs[using].outputs if "data" in each] == [""]
    index = starts["sentence_pairs"] + using
    assert any(
        "predicting" in str(content.get("data"))
        for at, _, content in client.sent
        if at == index  # type: ignore[attr-defined]
    )


def test_the_notebooks_are_committed_clean() -> None:
    for name in NAMES:
        found = notebook(name)
        nbformat.validate(found)
        assert set(found.metadata) == {"kernelspec", "language_info"}
        assert (ROOT / "examples" / f"{name}.ipynb").stat().st_size < 60_000
        text = json.dumps(found)
        assert str(Path.home()) not in text
        assert "/tmp/" not in text
        assert any(cell.outputs for cell in found.cells if cell.cell_type == "code")


def write() -> None:
    with TemporaryDirectory() as folder:
        found, _, _ = executed(Path(folder))
    for name in NAMES:
        kept = notebook(name)
        for cell, ran in zip(kept.cells, found[name], strict=False):
            if cell.cell_type == "code":
                cell.outputs = [each for each in ran.outputs if not _is_empty(each)]
                cell.execution_count = None
                cell.metadata = {}
                for each in cell.outputs:
                    each.pop("execution_count", None)
        nbformat.write(kept, ROOT / "examples" / f"{name}.ipynb")


def _is_empty(output: NotebookNode) -> bool:
    return output.output_type == "display_data" and not output.data["text/plain"]


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_notebooks.py --write")
    write()
