"""What PEFT wrote, at the command line; and what ``ptuning export-peft`` writes, in PEFT."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from conftest import sentiment
from ptuning import DeepPrompt, InputPrompt, Predictor, PTuningModel, Task
from ptuning.adapters import load, verify
from ptuning.cli import main
from tiny import ragged, tiny

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")

Ran = tuple[int, str, str]

P = 4
ROWS = [{"text": row["text"], "label": int(row["label"] == "positive")} for row in sentiment(24)]
NAMES = ("bad", "good")
METHODS: dict[str, Any] = {
    "p_tuning": lambda: peft.PromptEncoderConfig(
        task_type="SEQ_CLS", num_virtual_tokens=P, encoder_hidden_size=8
    ),
    "prefix_tuning": lambda: peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=P),
}
METRICS = {
    "test": {"accuracy": 0.75, "f1": 0.8},
    "baseline": {"accuracy": 0.5},
    "baseline_rule": "always 'bad'",
}
TASKS: dict[str, Task] = {
    "classes": Task(problem_type="single_label_classification", labels=NAMES, max_length=40),
    "number": Task(problem_type="regression", mean=3.0, scale=2.0),
}
PROMPTS: dict[str, DeepPrompt | InputPrompt] = {
    "deep": DeepPrompt(num_virtual_tokens=P),
    "start": InputPrompt(num_virtual_tokens=P, placement="start"),
    "front": InputPrompt(num_virtual_tokens=P, placement="front"),
    "upper": DeepPrompt(num_virtual_tokens=P, first_layer=1),
    "still": DeepPrompt(num_virtual_tokens=P, position_offset=0),
}


def base(folder: Path, num_labels: int = 2) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=num_labels, ignore_mismatched_sizes=True
    )
    return model


def trained_by_peft(folder: Path, method: str, *, num_labels: int = 2, steps: int = 10) -> Any:
    """PEFT's model after some steps of training, as its users make one."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer([row["text"] for row in ROWS], padding=True, return_tensors="pt")
    kind = torch.float32 if num_labels == 1 else torch.long
    labels = torch.tensor([row["label"] for row in ROWS], dtype=kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base(folder, num_labels), METHODS[method]())
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
        for _ in range(steps):
            model(**batch, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def written(model: Any, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(str(folder))


@pytest.fixture(scope="module")
def made(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PEFT's folders, by method; ``theirs-number`` a regression; ours, by prompt and by task."""
    home = tmp_path_factory.mktemp("made")
    for method in METHODS:
        written(trained_by_peft(tiny_folder, method), home / method)
    written(trained_by_peft(tiny_folder, "p_tuning", num_labels=1), home / "theirs-number")
    for prompt, config in PROMPTS.items():
        for task, facts in TASKS.items():
            torch.manual_seed(1)
            model = PTuningModel.from_backbone(str(tiny_folder), config, task=facts)
            with torch.no_grad():
                for value in model.task_parameters().values():
                    value.add_(torch.randn_like(value), alpha=0.3)
            model.save_pretrained(home / f"{prompt}-{task}", metrics=METRICS, extra={"note": "of a test"})
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a copy of all of them, and the rows."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    named = [{**row, "label": NAMES[row["label"]]} for row in ROWS]
    (tmp_path / "named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ptuning(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command; predictions and evaluations in fp32 on the CPU."""

    def run(command: str, *argv: str) -> Ran:
        held = ["--precision", "fp32", "--device", "cpu"] if command in ("predict", "evaluate") else []
        capsys.readouterr()
        code = main([command, *argv, *held])
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


@pytest.fixture
def answers(ptuning: Callable[..., Ran]) -> Callable[..., str]:
    """Run what works: what it printed."""

    def run(*argv: str) -> str:
        code, out, err = ptuning(*argv)
        assert (code, err) == (0, "")
        return out

    return run


@pytest.fixture
def refused(ptuning: Callable[..., Ran], home: Path) -> Callable[..., str]:
    """Run what cannot work: one line on standard error, nothing else, nothing written; the line."""

    def run(*argv: str) -> str:
        before = {file: file.stat().st_mtime_ns for file in home.rglob("*")}
        code, out, err = ptuning(*argv)
        assert (code, out) == (2, "")
        assert err.startswith("ptuning: error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert "Traceback" not in err
        assert {file: file.stat().st_mtime_ns for file in home.rglob("*")} == before
        return err.removeprefix("ptuning: error: ").strip()

    return run


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def in_peft(adapter: Path, backbone: Path, *, num_labels: int = 2) -> Tensor:
    """``[N, C]``: what PEFT says of the rows, one at a time, loading as its users do."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # an unknown key, a missing tensor
        model = peft.PeftModel.from_pretrained(base(backbone, num_labels), str(adapter)).eval()
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    with torch.no_grad():
        found = [model(**tokenizer(row["text"], return_tensors="pt")).logits[0] for row in ROWS]
    return torch.stack(found)


def in_ours(adapter: Path, backbone: Path) -> Tensor:
    """``[N, C]``: what our model says of the rows."""
    model = PTuningModel.from_pretrained(adapter, backbone=str(backbone), dtype=torch.float32).eval()
    assert model.tokenizer is not None
    with torch.no_grad():
        found = [model(**model.tokenizer(row["text"], return_tensors="pt")).logits[0] for row in ROWS]
    return torch.stack(found)


def changed(folder: Path, **options: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **options}))


def probabilities(found: list[dict[str, Any]]) -> Tensor:
    return torch.tensor([list(row["probabilities"].values()) for row in found])


# ------------------------------------------------------------------------------ PEFT's folders as they are


@pytest.mark.parametrize("method", METHODS)
def test_predict_takes_pefts_folder(
    answers: Callable[..., str], home: Path, tiny_folder: Path, method: str
) -> None:
    found = objects(answers("predict", method, "--input", "rows.jsonl"))
    expected = in_peft(home / method, tiny_folder).softmax(1)
    assert expected[:, 0].std() > 0.1  # it has learned something that can be got wrong
    torch.testing.assert_close(probabilities(found), expected, atol=2e-6, rtol=0)
    assert [row["label"] for row in found] == expected.argmax(1).tolist()
    assert list(found[0]["probabilities"]) == ["0", "1"]


def test_predict_takes_pefts_regression(answers: Callable[..., str], home: Path, tiny_folder: Path) -> None:
    found = objects(answers("predict", "theirs-number", "--input", "rows.jsonl"))
    expected = in_peft(home / "theirs-number", tiny_folder, num_labels=1)[:, 0]
    assert expected.std() > 0.05
    torch.testing.assert_close(torch.tensor([row["value"] for row in found]), expected, atol=1e-5, rtol=0)


def test_several_labels_a_row_are_what_the_backbone_says(
    answers: Callable[..., str], home: Path, tiny_folder: Path
) -> None:
    """PEFT's file says nothing of it; the backbone's configuration does."""
    shutil.copytree(tiny_folder, home / "several")
    file = home / "several" / "config.json"
    kind = {"problem_type": "multi_label_classification"}
    file.write_text(json.dumps({**json.loads(file.read_text()), **kind}))
    changed(home / "p_tuning", base_model_name_or_path=str(home / "several"))
    found = objects(answers("predict", "p_tuning", "--input", "rows.jsonl"))
    expected = in_peft(home / "p_tuning", home / "several").sigmoid()
    torch.testing.assert_close(probabilities(found), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_evaluate_takes_pefts_folder(
    answers: Callable[..., str], home: Path, tiny_folder: Path, method: str
) -> None:
    found = json.loads(answers("evaluate", method, "rows.jsonl", "--json"))
    logits, labels = in_peft(home / method, tiny_folder), torch.tensor([row["label"] for row in ROWS])
    assert found["rows"] == len(ROWS)
    assert found["metrics"]["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert found["metrics"]["loss"] == pytest.approx(loss, abs=1e-5)
    assert found["baseline"]["accuracy"] == 0.5  # PEFT keeps none: it is these rows' own
    assert found["rule"] in answers("evaluate", method, "rows.jsonl")


@pytest.mark.parametrize(
    ("method", "shape"), [("p_tuning", "input, shape [4, 32], placement start"),
                          ("prefix_tuning", "deep, shape [3, 2, 4, 32], from layer 0")],
)  # fmt: skip
def test_inspect_takes_pefts_folder(
    answers: Callable[..., str], tiny_folder: Path, method: str, shape: str
) -> None:
    text = " ".join(answers("inspect", method).split())
    assert shape in text
    assert "labels 0, 1" in text
    assert "fingerprint unknown: PEFT does not record it" in text
    assert "PEFT can load this folder" in text
    assert "None" not in text
    said = answers("inspect", method, "--backbone", str(tiny_folder))
    assert said.endswith(f"fits {tiny_folder}\n")
    found = json.loads(answers("inspect", method, "--json", "--backbone", str(tiny_folder)))
    assert found["fits"] == str(tiny_folder)
    assert found["task"]["labels"] == [0, 1]
    assert found["peft"] == "readable"
    assert found["prompt"]["num_virtual_tokens"] == P
    assert found["backbone"]["name"] == str(tiny_folder)
    assert found["parameters"] == (P * 32 if method == "p_tuning" else 3 * 2 * P * 32) + 66


def test_inspect_says_that_pefts_folder_does_not_fit(
    refused: Callable[..., str], tmp_path: Path, tiny_folder: Path
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "short")
    tiny("bert", num_labels=2, vocab_size=48, pad_token_id=0, num_hidden_layers=2).save_pretrained("short")
    said = refused("inspect", "prefix_tuning", "--json", "--backbone", "short")
    assert "not on short: got num_layers 2, expected num_layers 3" in said
    assert "num_layers 2" in refused("import-peft", "prefix_tuning", "out", "--backbone", "short")


# ------------------------------------------------------------------------------------------- import-peft


@pytest.mark.parametrize("method", METHODS)
def test_import_gives_names_and_the_same_answers(
    answers: Callable[..., str], home: Path, tiny_folder: Path, method: str
) -> None:
    assert answers("import-peft", method, "ours", "--labels", "bad, good") == f"{home / 'ours'}\n"
    assert set(verify("ours")) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "ptuning.json",
    }
    record = load("ours")
    assert record.task.labels == NAMES
    assert (
        record.backbone["fingerprint"]
        == PTuningModel.from_backbone(str(tiny_folder), num_labels=2).backbone.fingerprint()
    )
    assert record.extra["imported"]["peft_type"] == method.upper()
    assert "bad" in (home / "ours" / "README.md").read_text()
    found = objects(answers("predict", "ours", "--input", "rows.jsonl"))
    expected = in_peft(home / method, tiny_folder).softmax(1)
    torch.testing.assert_close(probabilities(found), expected, atol=2e-6, rtol=0)
    assert [row["label"] for row in found] == [NAMES[i] for i in expected.argmax(1)]
    assert list(found[0]["probabilities"]) == list(NAMES)
    by_name = json.loads(answers("evaluate", "ours", "named.jsonl", "--json"))
    by_number = json.loads(answers("evaluate", method, "rows.jsonl", "--json"))
    assert by_name["metrics"]["accuracy"] == by_number["metrics"]["accuracy"]
    # What was imported PEFT reads again.
    assert "can load this folder" in answers("inspect", "ours")
    torch.testing.assert_close(
        in_peft(home / "ours", tiny_folder), in_peft(home / method, tiny_folder), atol=1e-6, rtol=0
    )


def test_import_without_labels_takes_the_backbones(
    answers: Callable[..., str], tmp_path: Path, tiny_folder: Path
) -> None:
    answers("import-peft", "p_tuning", "ours")
    assert load("ours").task.labels == (0, 1)
    shutil.copytree(tiny_folder, tmp_path / "named")
    file = tmp_path / "named" / "config.json"
    labels = {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}
    file.write_text(json.dumps({**json.loads(file.read_text()), **labels}))
    answers("import-peft", "p_tuning", "ours", "--backbone", "named")  # in place of the one before
    assert load("ours").task.labels == ("no", "yes")
    assert load("ours").backbone["name"] == "named"


def test_import_for_pairs(answers: Callable[..., str], refused: Callable[..., str], tmp_path: Path) -> None:
    answers("import-peft", "p_tuning", "pairs", "--pair", "--labels", "bad,good")
    assert load("pairs").task.pair
    assert "expected two texts per row" in refused("predict", "pairs", "--input", "rows.jsonl")
    (tmp_path / "pairs.jsonl").write_text('{"text": "good film", "text_b": "bad food"}\n')
    (found,) = objects(answers("predict", "pairs", "--input", "pairs.jsonl"))
    assert found["label"] in NAMES
    answers("import-peft", "p_tuning", "single")
    assert not load("single").task.pair
    assert "pairs" in answers("inspect", "pairs")


@pytest.mark.parametrize(
    ("adapter", "labels", "said"),
    [
        (
            "p_tuning",
            "bad, so so, good",
            "--labels: got 3 names, expected 2, one per logit of the adapter's head",
        ),
        ("p_tuning", "bad", "--labels: got 1 names, expected 2"),
        ("p_tuning", "bad,bad", "labels: got 'bad' twice, expected distinct labels"),
        ("p_tuning", "bad,", "--labels: got an empty name"),
        ("p_tuning", "", "--labels: got "),
        (
            "theirs-number",
            "bad, good",
            "--labels: got 2 names, expected none, because a regression has no labels",
        ),
    ],
)
def test_labels_that_do_not_fit(refused: Callable[..., str], adapter: str, labels: str, said: str) -> None:
    assert said in refused("import-peft", adapter, "ours", "--labels", labels)


def test_import_of_a_regression(answers: Callable[..., str], home: Path, tiny_folder: Path) -> None:
    answers("import-peft", "theirs-number", "ours")
    assert load("ours").task == Task(problem_type="regression")
    found = objects(answers("predict", "ours", "--input", "rows.jsonl"))
    expected = in_peft(home / "theirs-number", tiny_folder, num_labels=1)[:, 0]
    torch.testing.assert_close(torch.tensor([row["value"] for row in found]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("command", ["import-peft", "export-peft"])
def test_a_destination_of_something_else_is_refused_at_once(
    refused: Callable[..., str], home: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def too_late(*_: Any, **__: Any) -> None:
        pytest.fail("a backbone was loaded for nothing")

    monkeypatch.setattr(PTuningModel, "from_pretrained", too_late)
    (home / "notes").mkdir()
    (home / "notes" / "diary.txt").write_text("dear diary")
    source = "p_tuning" if command == "import-peft" else "deep-classes"
    assert "notes is not empty and is not an adapter of ptuning" in refused(command, source, "notes")
    assert "rows.jsonl, expected a folder" in refused(command, source, "rows.jsonl")
    assert (home / "notes" / "diary.txt").read_text() == "dear diary"


def test_import_does_not_write_over_what_it_reads(refused: Callable[..., str]) -> None:
    """PEFT's folder is somebody's, and no adapter of ours."""
    assert "p_tuning is not empty and is not an adapter of ptuning" in refused(
        "import-peft", "p_tuning", "p_tuning"
    )


def test_one_of_ours_is_not_imported(refused: Callable[..., str]) -> None:
    said = refused("import-peft", "deep-classes", "out")
    assert said == "deep-classes is an adapter of ptuning already; use it as it is"


# --------------------------------------------------------------------------------- what cannot be taken

COMMANDS: dict[str, Sequence[str]] = {
    "predict": ["--input", "rows.jsonl"],
    "evaluate": ["rows.jsonl"],
    "inspect": [],
    "import-peft": ["out"],
}
every_command = pytest.mark.parametrize("command", COMMANDS)


def pickled(folder: Path, **more: Any) -> None:
    """As PEFT wrote it before it had safetensors."""
    file = folder / "adapter_model.safetensors"
    torch.save({**load_file(file), **more}, folder / "adapter_model.bin")
    file.unlink()


@pytest.mark.parametrize(
    "command",
    COMMANDS,
)
def test_a_pickle_is_read_only_if_allowed(
    answers: Callable[..., str], refused: Callable[..., str], home: Path, command: str
) -> None:
    plain = answers(command, "p_tuning", *COMMANDS[command])
    if command == "import-peft":
        assert sorted(load("out").head) == ["classifier.bias", "classifier.weight"]
        shutil.rmtree("out")
    pickled(home / "p_tuning")
    said = refused(command, "p_tuning", *COMMANDS[command])
    assert "has a pickle (adapter_model.bin, from an old version of PEFT)" in said
    assert "if you trust it, pass --allow-pickle" in said
    assert answers(command, "p_tuning", *COMMANDS[command], "--allow-pickle") == plain
    if command == "import-peft":
        assert torch.equal(load("out").prompt_tensor, load("p_tuning", allow_pickle=True).prompt_tensor)


class Hostile:
    """What a pickle can do: call something while it is read."""

    def __reduce__(self) -> Any:
        return (open, ("owned", "w"))


@every_command
def test_a_pickle_runs_nothing(refused: Callable[..., str], home: Path, command: str) -> None:
    pickled(home / "p_tuning", evil=Hostile())
    said = refused(command, "p_tuning", *COMMANDS[command], "--allow-pickle")
    assert "not a pickle of tensors only" in said
    assert not (home / "owned").exists()


@pytest.mark.parametrize("command", ["predict", "evaluate", "import-peft"])
def test_a_backbone_that_is_not_there(refused: Callable[..., str], home: Path, command: str) -> None:
    changed(home / "p_tuning", base_model_name_or_path=str(home / "gone"))
    said = refused(command, "p_tuning", *COMMANDS[command])
    assert said.startswith(f"backbone {str(home / 'gone')!r} could not be loaded")
    changed(home / "p_tuning", base_model_name_or_path=None)
    said = refused(command, "p_tuning", *COMMANDS[command])
    assert said.startswith("the adapter does not name its backbone; name it with --backbone")


@pytest.mark.parametrize("command", ["predict", "evaluate", "import-peft"])
def test_a_backbone_that_has_moved_is_named(
    answers: Callable[..., str], home: Path, tiny_folder: Path, command: str
) -> None:
    plain = answers(command, "p_tuning", *COMMANDS[command])
    changed(home / "p_tuning", base_model_name_or_path=str(home / "gone"))
    assert answers(command, "p_tuning", *COMMANDS[command], "--backbone", str(tiny_folder)) == plain


def test_inspect_needs_no_backbone(answers: Callable[..., str], home: Path) -> None:
    changed(home / "p_tuning", base_model_name_or_path=None)
    text = answers("inspect", "p_tuning")
    assert "None" not in text
    assert json.loads(answers("inspect", "p_tuning", "--json"))["backbone"]["name"] is None


@every_command
def test_another_method_of_pefts(
    refused: Callable[..., str], home: Path, tiny_folder: Path, command: str
) -> None:
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    written(peft.get_peft_model(base(tiny_folder), lora), home / "lora")
    said = refused(command, "lora", *COMMANDS[command])
    assert said.startswith("lora is a PEFT adapter of type 'LORA', expected one of P_TUNING, ")
    assert said.endswith("load it with peft.PeftModel.from_pretrained")


@every_command
def test_pefts_folder_without_its_tensors(refused: Callable[..., str], home: Path, command: str) -> None:
    file = home / "p_tuning" / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    said = refused(command, "p_tuning", *COMMANDS[command])
    assert said.startswith("adapter_model.safetensors in p_tuning was altered or cut short")
    file.unlink()
    said = refused(command, "p_tuning", *COMMANDS[command])
    assert re.search(r"no adapter_model.safetensors; copy or download it again", said)


def test_what_is_no_adapter_at_all(refused: Callable[..., str], home: Path) -> None:
    (home / "empty").mkdir()
    for command in ("import-peft", "export-peft"):
        assert "no adapter at empty: it has no ptuning.json" in refused(command, "empty", "out")
        assert "no adapter 'nosuch': there is no such folder" in refused(command, "nosuch", "out")
        assert "the following arguments are required: output" in refused(command, "p_tuning")
        assert "unknown option lables" in refused(command, "p_tuning", "out", "--lables", "bad,good")


# ------------------------------------------------------------------------------------------- export-peft


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("prompt", ["deep", "start"])
def test_export_gives_pefts_users_our_answers(
    answers: Callable[..., str], home: Path, tiny_folder: Path, prompt: str, task: str
) -> None:
    source = f"{prompt}-{task}"
    assert answers("export-peft", source, "out") == f"{home / 'out'}\n"
    expected = in_ours(home / source, tiny_folder)
    assert expected.std() > 0.1
    found = in_peft(home / "out", tiny_folder, num_labels=TASKS[task].num_labels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    # It is as good an adapter of ours as it was.
    torch.testing.assert_close(in_ours(home / "out", tiny_folder), expected, atol=1e-5, rtol=0)
    before, after = load(source), load("out")
    assert after.metrics == before.metrics == METRICS
    assert after.extra == before.extra == {"note": "of a test"}
    assert after.backbone == before.backbone
    assert after.prompt == before.prompt
    assert after.task.labels == before.task.labels
    assert after.task.max_length == before.task.max_length
    assert "can load this folder" in answers("inspect", "out")
    one, other = (objects(answers("predict", name, "--input", "rows.jsonl")) for name in (source, "out"))
    for ours, exported in zip(one, other, strict=True):
        assert exported.get("label") == ours.get("label")
        numbers = "value" if task == "number" else "probabilities"
        assert exported[numbers] == pytest.approx(ours[numbers], abs=1e-5)


def assert_same_tensors(one: Path, other: Path) -> None:
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_only_the_scaling_needs_the_export(answers: Callable[..., str], home: Path) -> None:
    """A classifier is PEFT's as it stands, and the export is it to the bit. A scaled regression is not."""
    answers("export-peft", "deep-classes", "same")
    assert_same_tensors(home / "same", home / "deep-classes")
    answers("export-peft", "deep-number", "folded")
    before, after = load("deep-number"), load("folded")
    assert (before.task.mean, before.task.scale, after.task.mean, after.task.scale) == (3, 2, 0, 1)
    torch.testing.assert_close(after.head["classifier.weight"], before.head["classifier.weight"] * 2)
    torch.testing.assert_close(after.head["classifier.bias"], before.head["classifier.bias"] * 2 + 3)
    assert torch.equal(after.prompt_tensor, before.prompt_tensor)
    said = " ".join(answers("inspect", "deep-number").split())
    assert "its scores are in units of 2 around 3" in said
    assert "ptuning export-peft" in said


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("front", "are placed at 'front', .* prompt.placement 'start'$"),
        ("upper", "starts at layer 1, .* prompt.first_layer 0$"),
        ("still", "prompt.position_offset is 0, .* always uses 4 for 4 virtual tokens on bert"),
    ],
)
def test_what_peft_cannot_hold_is_not_exported(
    refused: Callable[..., str], home: Path, prompt: str, task: str, said: str
) -> None:
    assert re.search(f"^PEFT cannot load this adapter: its .*{said}", refused(
        "export-peft", f"{prompt}-{task}", "out"
    ))  # fmt: skip
    assert not (home / "out").exists()


def test_a_decoders_mean_has_no_place_in_its_head(
    answers: Callable[..., str], refused: Callable[..., str], home: Path
) -> None:
    """``score`` has no bias. A scale alone goes into its weights."""
    ids, mask = ragged([6, 6])
    for name, mean in (("off", 3.0), ("on", 0.0)):
        model = PTuningModel.from_backbone(
            tiny("gpt2", num_labels=1),
            DeepPrompt(num_virtual_tokens=P),
            task=Task(problem_type="regression", mean=mean, scale=2.0),
        ).eval()
        model.save_pretrained(home / name)
    said = refused("export-peft", "off", "out")
    assert said.startswith("PEFT cannot load this adapter: its scores are around 3, and score.weight has no ")
    assert said.endswith("train on targets minus their mean")
    answers("export-peft", "on", "out")
    theirs = peft.PeftModel.from_pretrained(tiny("gpt2", num_labels=1), str(home / "out")).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(input_ids=ids, attention_mask=mask).logits,
            model(input_ids=ids, attention_mask=mask).logits,
            atol=1e-5,
            rtol=0,
        )


def test_export_in_place(answers: Callable[..., str], home: Path, tiny_folder: Path) -> None:
    expected = in_ours(home / "deep-number", tiny_folder)
    answers("export-peft", "deep-number", "deep-number")
    found = in_peft(home / "deep-number", tiny_folder, num_labels=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    answers("export-peft", "deep-number", "again")  # nothing is left to fold
    assert_same_tensors(home / "again", home / "deep-number")


@pytest.mark.parametrize("method", METHODS)
def test_what_peft_wrote_needs_no_export(refused: Callable[..., str], method: str) -> None:
    said = refused("export-peft", method, "out")
    assert said == f"{method} is a PEFT adapter already; use it as it is"


def test_an_altered_adapter_is_not_exported(refused: Callable[..., str], home: Path) -> None:
    file = home / "deep-classes" / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert "adapter_model.safetensors in deep-classes was altered" in refused(
        "export-peft", "deep-classes", "out"
    )


def test_predictor_names_what_was_imported(answers: Callable[..., str], home: Path) -> None:
    """The library and the command line agree on what was imported."""
    answers("import-peft", "prefix_tuning", "ours", "--labels", "bad,good")
    found = objects(answers("predict", "ours", "--input", "rows.jsonl"))
    library = Predictor(model=PTuningModel.from_pretrained("ours", dtype=torch.float32))
    for row, other in zip(found, library([row["text"] for row in ROWS]), strict=True):
        assert row["label"] == other.label
        assert row["probabilities"] == pytest.approx(other.to_dict()["probabilities"], abs=1e-5)
