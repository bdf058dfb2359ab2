"""The house: imports run downward, the public surface is a list, nothing unpickles or evaluates text."""

from __future__ import annotations

import ast
import csv
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ptuning

ROOT = Path(__file__).parent.parent
SOURCE = Path(ptuning.__file__).parent
#: From low to high. A module may import what stands on its own level or below.
LAYERS = (
    (
        *(
            "ptuning",
            "ptuning._lazy",
            "ptuning.cache",
            "ptuning.calibration",
            "ptuning.config_file",
            "ptuning.errors",
            "ptuning.files",
            "ptuning.kinds",
            "ptuning.paths",
            "ptuning.progress",
        ),
        *("ptuning.task", "ptuning.threads", "ptuning.typos", "ptuning.validation", "ptuning.visible"),
        *("ptuning.model.config", "ptuning.model.template"),  # choices alone: an adapter's record holds them
    ),
    ("ptuning.adapters",),
    ("ptuning.model",),
    ("ptuning.data", "ptuning.peft"),
    ("ptuning.inference",),
    ("ptuning.report",),
    ("ptuning.training", "ptuning.serving"),
    ("ptuning.estimators",),
    ("ptuning.ray",),
    ("ptuning.cli", "ptuning.__main__"),
)
UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
UNSAFE = {"eval", "exec", "compile", "yaml.load", "yaml.unsafe_load", "np.load"}
LONGEST = {"src": 500, "benchmarks": 500, "tests": 900}
"""Lines of a module, by folder."""
TO_SPLIT = {
    *(f"benchmarks/torture/{name}.py" for name in ("adapter", "files", "lab")),
    *(f"tests/test_{name}.py" for name in ("model_invariants", "reference_faults", "stems")),
}
"""Modules that are longer and not split yet. This list only gets shorter."""
PUBLIC = [
    "Callback",
    "ClozeHead",
    "ConsoleCallback",
    "DataConfig",
    "DeepMLPEncoder",
    "DeepPrompt",
    "EmbeddingEncoder",
    "Engine",
    "FitConfig",
    "InputPrompt",
    "LSTMEncoder",
    "MLPEncoder",
    "MultiPredictor",
    "PTuningClassifier",
    "PTuningError",
    "PTuningModel",
    "PTuningRegressor",
    "Prediction",
    "Predictor",
    "RandomInit",
    "ResidualEncoder",
    "RunState",
    "SearchResult",
    "SeveralResult",
    "Task",
    "TaskTable",
    "TextInit",
    "TrackerCallback",
    "TrainConfig",
    "TrainResult",
    "VocabularyInit",
    "fit",
    "pipeline",
    "train",
    "train_search",
    "train_several",
]


def module_name(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(file): ast.parse(file.read_text("utf-8")) for file in sorted(SOURCE.rglob("*.py"))}


def run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from run_time_nodes(child)


def imports_of(name: str) -> set[str]:
    """The modules of ours that a module imports, at its top or inside its functions."""
    found: set[str] = set()
    for node in run_time_nodes(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import; this project writes them whole"
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= below & TREES.keys() or {str(node.module)}
    return (found & TREES.keys()) - {name}


GRAPH = {name: imports_of(name) for name in TREES}


def layer(name: str) -> int:
    for level, rooms in enumerate(LAYERS):
        if any(name == room or (room != "ptuning" and name.startswith(f"{room}.")) for room in rooms):
            return level
    raise AssertionError(f"{name} stands in no layer: give it one in LAYERS")


def test_the_graph_is_the_real_one() -> None:
    """Guards the two tests below: a graph without edges would pass them."""
    assert "ptuning.model.ptuning" in GRAPH["ptuning.data.tokens"]
    assert "ptuning.training.run" in GRAPH["ptuning.cli.train"]  # inside a function
    assert "ptuning.adapters" in GRAPH["ptuning.model.ptuning"]  # from ptuning import adapters
    assert sum(map(len, GRAPH.values())) > 100


def test_imports_run_downward() -> None:
    upward = [f"{name} → {other}" for name in GRAPH for other in GRAPH[name] if layer(other) > layer(name)]
    assert upward == []


def test_there_is_no_import_cycle() -> None:
    TopologicalSorter(GRAPH).prepare()  # raises CycleError, naming the modules


def test_the_public_surface_is_this_list_and_every_name_is_there() -> None:
    assert ptuning.__all__ == PUBLIC
    assert dir(ptuning) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(ptuning, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'ptuning' has no attribute 'nothing'"):
        _ = ptuning.nothing


def test_what_is_public_is_documented() -> None:
    """``Name(…)`` is what dataclass writes, not a person."""
    texts = {name: getattr(ptuning, name).__doc__ or "" for name in PUBLIC}
    assert [name for name, text in texts.items() if not text or text.startswith(f"{name}(")] == []


def test_every_module_says_what_it_is_for() -> None:
    assert [name for name, tree in TREES.items() if not ast.get_docstring(tree)] == []


def test_no_module_is_long() -> None:
    lengths = {
        file.relative_to(ROOT).as_posix(): (len(file.read_text("utf-8").splitlines()), most)
        for folder, most in LONGEST.items()
        for file in (ROOT / folder).rglob("*.py")
    }
    long = {name for name, (length, most) in lengths.items() if length > most}
    assert sorted(long - TO_SPLIT) == [], "split these"
    assert sorted(TO_SPLIT - long) == [], "these are short now, or gone: take them off TO_SPLIT"


@pytest.mark.parametrize("module", ["ptuning", "ptuning.cli", "ptuning.training.config"])
def test_importing_is_light(module: str) -> None:
    heavy = {"torch", "transformers", "datasets", "accelerate", "sklearn", "pyarrow", "numpy"}
    code = f"import {module}, sys; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def unsafe(name: str) -> Iterator[str]:
    """What a module does that could run somebody else's code."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            yield from (f"{name}: import {module}" for module in modules & UNPICKLING)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            # torch.load with weights_only is the restricted unpickler: tensors and containers, no code
            restricted = called != "torch.load" or options.get("weights_only") == "True"
            if called in UNSAFE or not restricted or options.get("trust_remote_code", "False") != "False":
                yield f"{name}: {ast.unparse(node)}"


def test_nothing_unpickles_or_runs_text() -> None:
    assert [found for name in TREES for found in unsafe(name)] == []


@pytest.mark.parametrize(
    "text",
    [
        *("import pickle", "from joblib import load", "eval(x)", "yaml.load(x)", "torch.load(x)"),
        *("torch.load(x, weights_only=False)", "AutoModel.from_pretrained(x, trust_remote_code=True)"),
    ],
)
def test_what_is_unsafe_is_found(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TREES, "made", ast.parse(text))
    assert len([*unsafe("made")]) == 1


def test_the_package_is_typed_and_brings_its_data() -> None:
    assert (SOURCE / "py.typed").is_file()
    assert (SOURCE / "demo_data" / "README.md").is_file()


def test_the_demo_data_is_six_classes_without_repeats_or_leaks() -> None:
    splits = {}
    for name in ("train", "validation", "test"):
        with (SOURCE / "demo_data" / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
            splits[name] = list(csv.DictReader(stream))
    texts = [" ".join(row["text"].casefold().split()) for rows in splits.values() for row in rows]
    assert len(texts) >= 480
    assert len(set(texts)) == len(texts)  # distinct within a split and across splits
    labels = {name: {row["label"] for row in rows} for name, rows in splits.items()}
    assert len(labels["train"]) == 6
    assert labels["train"] == labels["validation"] == labels["test"]
