"""Pushing to the Hub and loading from it, through the real client, against a stand-in on loopback."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from conftest import sentiment
from hub_server import Hub
from ptuning import DeepPrompt, FitConfig, InputPrompt, PTuningModel, Task, fit
from ptuning import peft as ptuning_peft
from ptuning.adapters import details, hub_out_of_reach, load, locate, push, save, verify
from ptuning.adapters import hub as hub_module
from ptuning.cli import main
from ptuning.errors import AdapterError, BackboneNotFound, ConfigError
from test_adapters_record import an_adapter

OWN = {"README.md", "adapter_config.json", "adapter_model.safetensors", "ptuning.json"}
METRICS = {
    "test": {"accuracy": 0.75, "f1": 0.8},
    "baseline": {"accuracy": 0.5},
    "baseline_rule": "always 'no'",
}
TEXTS = ["good film", "the food was awful", "not bad"]


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> Hub:
    """The Hub, with ``someone`` logged in through the environment."""
    monkeypatch.setenv("HF_TOKEN", "hf_someone")
    return hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small adapter folder, called ``local name``."""
    return save(an_adapter(metrics=METRICS, extra={"license": "mit"}), tmp_path / "local name")


def another(folder: Path, seed: int = 1) -> Path:
    """Put an adapter with another prompt in the folder's place."""
    torch.manual_seed(seed)
    return save(an_adapter(prompt_tensor=torch.randn(4, 16)), folder)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def one_line(run: Callable[[], object], *words: str, error: type[Exception] = AdapterError) -> str:
    """The message of the error that ``run`` raises: one line, with these words, without a token."""
    with pytest.raises(error) as caught:
        run()
    message = str(caught.value)
    assert "\n" not in message
    assert "hf_" not in message.replace("hf_hub", "")
    for word in words:
        assert word in message
    return message


# --------------------------------------------------------------------------------------- round trip


@pytest.fixture(scope="module")
def trained(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that was trained for real, whose backbone is ``someone/tiny-bert``'s bytes."""
    model = PTuningModel.from_backbone(
        str(tiny_folder),
        InputPrompt(num_virtual_tokens=4, placement="start"),
        task=Task(problem_type="single_label_classification", labels=("negative", "positive")),
    )
    model.backbone.name = "someone/tiny-bert"
    output = tmp_path_factory.mktemp("trained") / "film"
    data = {"train": sentiment(48), "validation": sentiment(16, seed=1), "test": sentiment(16, seed=2)}
    fit(model, data, FitConfig(epochs=2, batch_size=8), report=False, output=output)
    return output


def logits(model: PTuningModel) -> torch.Tensor:
    assert model.tokenizer is not None
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(**model.tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    return found


def test_what_was_pushed_is_what_is_loaded_to_the_bit(
    login: Hub, trained: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Adapter, backbone and tokenizer all come from the Hub; then from its cache, without it."""
    login.add_folder("someone/tiny-bert", tiny_folder)
    address = push(trained, "someone/film")
    head = login.repositories["someone/film"].branches["main"]
    assert address == f"{constants.ENDPOINT}/someone/film/commit/{head}"
    here = PTuningModel.from_pretrained(trained, backbone=str(tiny_folder))
    there = PTuningModel.from_pretrained("someone/film")
    assert there.backbone.name == "someone/tiny-bert"
    assert there.task.labels == ("negative", "positive")
    assert torch.equal(logits(here), logits(there))

    asked = len(login.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub_module.known.cache_clear()
    assert torch.equal(logits(here), logits(PTuningModel.from_pretrained("someone/film")))
    assert len(login.requests) == asked

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another cache"))
    one_line(lambda: locate("someone/film"), "the Hub's cache has no complete copy", "unset HF_HUB_OFFLINE")


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")  # PEFT's
def test_the_examples_of_the_card_run(login: Hub, trained: Path, tiny_folder: Path) -> None:
    """All of them, as a reader of the page would run them."""
    login.add_folder("someone/tiny-bert", tiny_folder)
    push(trained, "someone/film")
    card = login.repositories["someone/film"].files()["README.md"].decode()
    examples = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    ours = next(example for example in examples if "PTuningModel" in example)
    theirs = next(example for example in examples if "peft" in example)
    names: dict[str, Any] = {}
    exec(next(example for example in examples if "pipeline" in example), names)
    assert names["classify"]("good film")[0]["label"] in ("negative", "positive")
    exec(ours, names)
    expected = logits(names["model"])
    tokenizer = names["model"].tokenizer
    exec(theirs, names)
    model = names["model"].eval()
    with torch.no_grad():
        found = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(found, expected)


def test_the_commands_of_the_card_run(
    login: Hub,
    trained: Path,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    login.add_folder("someone/tiny-bert", tiny_folder)
    monkeypatch.chdir(tmp_path)
    assert main(["push", str(trained), "someone/film", "--license", "mit", "--message", "First try"]) == 0
    assert re.fullmatch(
        rf"{constants.ENDPOINT}/someone/film/commit/[0-9a-f]{{40}}\n", capsys.readouterr().out
    )
    there = login.repositories["someone/film"]
    assert there.messages[-1] == "First try"
    card = there.files()["README.md"].decode()
    command = re.search(r"```bash\n(.*?)\n```", card, re.DOTALL)
    assert command is not None
    words = command[1].split()
    assert words[0] == "ptuning"
    Path(words[-1]).write_text("\n".join(TEXTS))
    assert main([*words[1:], "--precision", "fp32", "--device", "cpu"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["row"] for row in rows] == [1, 2, 3]
    assert main(["inspect", "someone/film"]) == 0
    assert "someone/tiny-bert" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["push", "nowhere", "someone/film"], ("no adapter at nowhere", "there is no such folder")),
        (["push", "local name", "a/b/c"], ("'a/b/c'", "such as 'owner/name'")),
        (["push", "local name", "other/film"], ("the user 'someone' has no permission", "'other/film'")),
        (["push", "local name", "someone/film", "--license", "My Own"], ("'My Own'", "'apache-2.0'")),
        (["predict", "someone/nothing"], ("the Hub has no such repository", "hf auth login")),
        (["inspect", "someone/nothing"], ("the Hub has no such repository", "hf auth login")),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    argv: list[str],
    words: tuple[str, ...],
    login: Hub,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder.parent)
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("ptuning: error: ")
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err
    for word in words:
        assert word in printed.err


def test_no_option_takes_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", "folder", "someone/film", "--token", "hf_secret"]) == 2
    assert "unknown option token" in capsys.readouterr().err
    assert main(["push", "--help"]) == 0
    assert "read from HF_TOKEN or from 'hf auth login'; there is no option for it" in " ".join(
        capsys.readouterr().out.split()
    )


# ------------------------------------------------------------------------------ pushed by the model itself


FILM = Task(problem_type="single_label_classification", labels=("negative", "positive"))


def moved(model: PTuningModel, seed: int = 1) -> PTuningModel:
    """The model with every number of the task away from where it was."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for value in model.task_parameters().values():
            value.add_(torch.randn_like(value) * 0.3)
    return model


def served(there: Hub, name: str, revision: str = "main") -> tuple[dict[str, Any], str]:
    """``ptuning.json`` and the model card, as the Hub has them."""
    files = there.repositories[name].files(revision)
    return json.loads(files["ptuning.json"]), files["README.md"].decode()


@pytest.mark.parametrize(
    "prompt", [DeepPrompt(num_virtual_tokens=4), InputPrompt(num_virtual_tokens=4)], ids=["deep", "input"]
)
def test_a_model_that_pushes_itself_is_loaded_to_the_bit(
    login: Hub, tiny_folder: Path, prompt: DeepPrompt | InputPrompt, tmp_path: Path
) -> None:
    login.add_folder("someone/tiny-bert", tiny_folder)
    here = moved(PTuningModel.from_backbone("someone/tiny-bert", prompt, task=FILM))
    address = here.push_to_hub(
        "someone/film", metrics=METRICS, extra={"note": "mine"}, license="mit", commit_message="By the model"
    )
    repository = login.repositories["someone/film"]
    assert address == f"{constants.ENDPOINT}/someone/film/commit/{repository.branches['main']}"
    assert repository.messages[-1] == "By the model"
    assert set(repository.files()) == OWN | {".gitattributes"}
    there = PTuningModel.from_pretrained("someone/film")
    assert there.task == FILM
    assert there.backbone.name == "someone/tiny-bert"
    assert torch.equal(logits(here), logits(there))
    assert logits(here).std() > 0.05
    # As if it had been saved and then pushed.
    by_hand = load(here.save_pretrained(tmp_path / "film"))
    pushed = load(locate("someone/film"))
    assert torch.equal(pushed.prompt_tensor, by_hand.prompt_tensor)
    assert (pushed.prompt, pushed.backbone) == (by_hand.prompt, by_hand.backbone)


@pytest.mark.parametrize("revision", [None, "v2"])
def test_the_backbones_commit_is_remembered(login: Hub, tiny_folder: Path, revision: str | None) -> None:
    """So that the adapter is put on the same weights when the backbone's repository has moved on."""
    there = login.add_folder("someone/tiny-bert", tiny_folder)
    there.commit(there.files(), "second", revision or "main")
    commit = there.branches[revision or "main"]
    model = PTuningModel.from_backbone("someone/tiny-bert", num_labels=2, revision=revision)
    assert model.backbone.revision == commit
    head: Any = model.backbone.weights.load_language_head
    assert head.keywords["revision"] == commit  # it is loaded later
    model.push_to_hub("someone/film")
    assert served(login, "someone/film")[0]["backbone"]["revision"] == commit
    there.commit(dict.fromkeys(there.files(), b""), "moved on", revision or "main")
    assert torch.equal(logits(PTuningModel.from_pretrained("someone/film")), logits(model))


def test_the_metrics_of_a_model_that_pushes_itself_are_on_its_card(
    login: Hub, tiny_folder: Path, tmp_path: Path
) -> None:
    model = PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=4), task=FILM)
    model.push_to_hub("someone/film", metrics=METRICS, extra={"note": "mine"}, private=True)
    assert login.repositories["someone/film"].private
    record, card = served(login, "someone/film")
    assert record["metrics"] == METRICS
    assert record["extra"] == {"note": "mine"}
    assert 'PTuningModel.from_pretrained("someone/film")' in card
    file = tmp_path / "README.md"
    file.write_text(card)
    data = ModelCard.load(file).data
    assert data.model_name == "someone/film"
    assert {(each.metric_type, each.metric_value) for each in data.eval_results} == {
        ("accuracy", 0.75),
        ("f1", 0.8),
    }


def test_metrics_are_kept_as_long_as_they_are_true(login: Hub, tiny_folder: Path) -> None:
    login.add_folder("someone/tiny-bert", tiny_folder)
    prompt = InputPrompt(num_virtual_tokens=4, placement="start")
    first = moved(PTuningModel.from_backbone("someone/tiny-bert", prompt, task=FILM))
    first.push_to_hub("someone/film", metrics=METRICS, extra={"note": "mine"})
    second = PTuningModel.from_pretrained("someone/film")
    second.push_to_hub("someone/again")
    assert served(login, "someone/again")[0]["metrics"] == METRICS
    assert served(login, "someone/again")[0]["extra"] == {"note": "mine"}
    assert "0.75" in served(login, "someone/again")[1]
    optimizer = torch.optim.AdamW(second.task_parameters().values(), lr=1e-2)
    assert second.tokenizer is not None
    batch = second.tokenizer(TEXTS, padding=True, return_tensors="pt")
    second(**batch, labels=torch.tensor([1, 0, 1])).loss.backward()
    optimizer.step()
    second.push_to_hub("someone/again")
    record, card = served(login, "someone/again")
    assert record["metrics"] == record["extra"] == {}
    assert "0.75" not in card
    assert len(login.repositories["someone/again"].commits) == 3
    newer = {**METRICS, "test": {"accuracy": 0.875}}
    second.push_to_hub("someone/again", metrics=newer)
    assert served(login, "someone/again")[0]["metrics"] == newer
    assert served(login, "someone/film")[0]["metrics"] == METRICS


def test_a_model_that_may_not_push_itself(
    hub: Hub, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=4), task=FILM)
    one_line(lambda: model.push_to_hub("someone/film"), "needs an access token")
    one_line(lambda: model.push_to_hub("someone/film", token="hf_reader"), "'reader' has no permission")
    monkeypatch.setenv("HF_TOKEN", "hf_someone")
    one_line(lambda: model.push_to_hub("a/b/c"), "expected a Hub id such as 'owner/name'")
    one_line(lambda: model.push_to_hub("someone/film", license="My Own"), "license", error=ConfigError)
    with torch.no_grad():
        next(iter(model.task_parameters().values())).fill_(float("nan"))
    one_line(lambda: model.push_to_hub("someone/film"), "NaN or infinite")
    assert hub.repositories == {}


def theirs_from_hub() -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained("someone/tiny-bert")
    return model


@pytest.mark.parametrize("depth", ["input", "deep"])
def test_under_pefts_names(login: Hub, tiny_folder: Path, depth: str) -> None:
    login.add_folder("someone/tiny-bert", tiny_folder)
    config: ptuning_peft.PromptLearningConfig = (
        ptuning_peft.PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=8, placement="end")
        if depth == "input"
        else ptuning_peft.PrefixTuningConfig(num_virtual_tokens=4, first_layer=1)
    )
    here = ptuning_peft.get_peft_model(theirs_from_hub(), config)
    moved(here.active)
    here.push_to_hub("someone/film", revision="try", commit_message="Under PEFT's names")
    repository = login.repositories["someone/film"]
    assert set(repository.files("try")) == OWN | {".gitattributes"}
    assert repository.messages[-1] == "Under PEFT's names"
    one_line(lambda: ptuning_peft.PeftConfig.from_pretrained("someone/film"), "is not an adapter")
    back = ptuning_peft.PeftConfig.from_pretrained("someone/film", revision="try")
    assert type(back) is type(config)
    assert back.num_virtual_tokens == 4
    assert back.base_model_name_or_path == "someone/tiny-bert"
    for field in ("encoder_hidden_size", "placement", "first_layer"):
        assert getattr(back, field, None) == getattr(config, field, None)
    there = ptuning_peft.PeftModel.from_pretrained(theirs_from_hub(), "someone/film", revision="try")
    tokenizer = AutoTokenizer.from_pretrained("someone/tiny-bert")
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    here.eval()
    with torch.no_grad():
        expected = here(**batch).logits
        assert torch.equal(there(**batch).logits, expected)
        moved(here.active, seed=2)
        assert not torch.equal(here(**batch).logits, expected)
    here.push_to_hub("someone/film", revision="try")  # the newest, and the commit before it
    first = next(commit for commit, files in repository.commits.items() if "ptuning.json" in files)
    old = ptuning_peft.PeftModel.from_pretrained(theirs_from_hub(), "someone/film", revision=first)
    new = ptuning_peft.PeftModel.from_pretrained(theirs_from_hub(), "someone/film", revision="try")
    with torch.no_grad():
        assert torch.equal(old(**batch).logits, expected)
        assert torch.equal(new(**batch).logits, here(**batch).logits)


@pytest.fixture
def theirs(login: Hub, tiny_folder: Path, tmp_path: Path) -> Any:
    """PEFT's own model on ``someone/tiny-bert``, and what it wrote on the Hub as ``someone/theirs``."""
    peft = pytest.importorskip("peft")
    login.add_folder("someone/tiny-bert", tiny_folder)
    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(theirs_from_hub(), config).eval()
        with torch.no_grad():
            for value in model.parameters():
                if value.requires_grad:
                    value.add_(torch.randn_like(value) * 0.3)
        model.save_pretrained(str(tmp_path / "theirs"))
    login.add_folder("someone/theirs", tmp_path / "theirs")
    return model


def peft_logits(model: Any) -> torch.Tensor:
    batch = AutoTokenizer.from_pretrained("someone/tiny-bert")(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        found: torch.Tensor = model(**batch).logits
    return found


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")  # PEFT's
def test_what_peft_pushed_is_loaded(
    login: Hub, theirs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = peft_logits(theirs)
    assert expected.std() > 0.05
    model = PTuningModel.from_pretrained("someone/theirs")
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
    config = ptuning_peft.PeftConfig.from_pretrained("someone/theirs")
    assert type(config) is ptuning_peft.PrefixTuningConfig
    assert config.base_model_name_or_path == "someone/tiny-bert"
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    held = ["--input", str(tmp_path / "texts.txt"), "--precision", "fp32", "--device", "cpu"]
    capsys.readouterr()
    assert main(["predict", "someone/theirs", *held]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = torch.tensor([list(row["probabilities"].values()) for row in rows])
    torch.testing.assert_close(found, expected.softmax(1), atol=2e-6, rtol=0)
    # Pushed from here it has a record of its own, and PEFT reads it from there as well.
    model.push_to_hub("someone/ours")
    assert served(login, "someone/ours")[0]["extra"]["imported"]["peft_type"] == "PREFIX_TUNING"
    import peft

    again = peft.PeftModel.from_pretrained(theirs_from_hub(), "someone/ours").eval()
    torch.testing.assert_close(peft_logits(again), expected, atol=1e-5, rtol=0)
    one_line(lambda: model.push_to_hub("someone/theirs"), "no ptuning.json", "push to another name")


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")  # PEFT's
def test_a_pickle_is_not_even_fetched_unless_allowed(
    login: Hub, theirs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "theirs" / "adapter_model.safetensors"
    torch.save(load_file(file), tmp_path / "theirs" / "adapter_model.bin")
    file.unlink()
    login.add_folder("someone/old", tmp_path / "theirs")
    one_line(lambda: PTuningModel.from_pretrained("someone/old"), "adapter_model.bin", "allow_pickle=True")
    assert not any("adapter_model.bin" in asked for asked in login.requests)
    model = PTuningModel.from_pretrained("someone/old", allow_pickle=True)
    torch.testing.assert_close(logits(model), peft_logits(theirs), atol=1e-5, rtol=0)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    argv = ["predict", "someone/old", "--input", str(tmp_path / "texts.txt"), "--device", "cpu"]
    capsys.readouterr()
    assert main(argv) == 2
    said = capsys.readouterr().err.splitlines()[-1]  # behind the client's bar of progress
    assert said.startswith("ptuning: error: the Hub repository 'someone/old' is a PEFT adapter without")
    assert main([*argv, "--allow-pickle"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(TEXTS)


# --------------------------------------------------------------------------------- what is uploaded


def test_what_stands_there_is_whole_and_names_the_repository(login: Hub, folder: Path) -> None:
    before = tree(folder)
    push(folder, "someone/refunds")
    assert tree(folder) == before
    there = login.repositories["someone/refunds"]
    assert set(there.files()) == OWN | {".gitattributes"}
    assert len(there.commits) == 2  # the one the repository came with, and ours
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert there.files()[name] == before[name]
    fetched = locate("someone/refunds")
    assert set(verify(fetched)) == OWN
    changed = ("files", "sha256_self")
    assert {k: v for k, v in details(fetched).items() if k not in changed} == {
        k: v for k, v in details(folder).items() if k not in changed
    }
    card = there.files()["README.md"].decode()
    assert 'PTuningModel.from_pretrained("someone/refunds")' in card
    assert "local name" not in card


def test_tensors_go_through_lfs(login: Hub, folder: Path) -> None:
    push(folder, "someone/refunds")
    data = (folder / "adapter_model.safetensors").read_bytes()
    oid = hashlib.sha256(data).hexdigest()
    assert login.objects == {oid: data}
    assert f"PUT /lfs/{oid}" in login.requests
    assert f"POST /lfs/{oid}/verify" in login.requests


def test_the_card_says_what_the_hub_reads(login: Hub, folder: Path, tmp_path: Path) -> None:
    push(folder, "someone/refunds")
    file = tmp_path / "README.md"
    file.write_bytes(login.repositories["someone/refunds"].files()["README.md"])
    data = ModelCard.load(file).data
    assert data.license == "mit"
    assert data.base_model == "someone/tiny-bert"
    assert data.model_name == "someone/refunds"
    assert {(each.dataset_split, each.metric_type, each.metric_value) for each in data.eval_results} == {
        ("test", "accuracy", 0.75),
        ("test", "f1", 0.8),
    }


def test_a_second_push_updates_and_an_equal_one_changes_nothing(login: Hub, folder: Path) -> None:
    first = push(folder, "someone/refunds")
    there = login.repositories["someone/refunds"]
    assert push(folder, "someone/refunds") == first
    assert len(there.commits) == 2
    another(folder)
    assert push(folder, "someone/refunds") != first
    assert len(there.commits) == 3
    assert torch.equal(load(locate("someone/refunds")).prompt_tensor, load(folder).prompt_tensor)


def test_a_branch_a_commit_and_the_newest_are_told_apart(login: Hub, folder: Path) -> None:
    push(folder, "someone/refunds")
    there = login.repositories["someone/refunds"]
    first, old = there.branches["main"], load(folder).prompt_tensor
    new = load(another(folder)).prompt_tensor
    push(folder, "someone/refunds", revision="try/2")
    push(another(folder, 2), "someone/refunds", revision="try/2")
    assert there.branches["main"] == first
    assert torch.equal(load(locate("someone/refunds")).prompt_tensor, old)
    assert torch.equal(load(locate("someone/refunds", revision=first)).prompt_tensor, old)
    newest = load(locate("someone/refunds", revision="try/2")).prompt_tensor
    assert torch.equal(newest, load(folder).prompt_tensor)
    assert not torch.equal(newest, new)
    one_line(
        lambda: locate("someone/refunds", revision="v9"), "no revision 'v9'", "leave it out for the newest"
    )
    one_line(
        lambda: push(folder, "someone/refunds", revision=first), first, "expected a branch", error=ConfigError
    )


def test_a_pull_request_leaves_the_main_branch(login: Hub, folder: Path) -> None:
    login.tokens["hf_other"] = type(login.tokens["hf_someone"])("other")
    push(folder, "someone/refunds")
    there = login.repositories["someone/refunds"]
    first = there.branches["main"]
    found = push(another(folder), "someone/refunds", token="hf_other", create_pr=True)
    assert found == f"{constants.ENDPOINT}/someone/refunds/discussions/1"
    assert there.branches["main"] == first
    proposed = load(locate("someone/refunds", revision="refs/pr/1"))
    assert torch.equal(proposed.prompt_tensor, load(folder).prompt_tensor)


def test_a_checkpoint_goes_without_what_resumes_it(login: Hub, tmp_path: Path) -> None:
    def resume(new: Path) -> None:
        (new / "resume").mkdir()
        (new / "resume" / "state.json").write_text("{}")

    folder = save(an_adapter(), tmp_path / "checkpoint", extra_files=resume)
    push(folder, "someone/refunds")
    assert set(login.repositories["someone/refunds"].files()) == OWN | {".gitattributes"}
    assert set(verify(locate("someone/refunds"))) == OWN


def test_a_card_that_a_person_edited_goes_as_it_is(login: Hub, folder: Path) -> None:
    card = folder / "README.md"
    card.write_text(card.read_text().replace("# local name", "# Refunds, by hand"))
    push(folder, "someone/refunds")
    assert login.repositories["someone/refunds"].files()["README.md"] == card.read_bytes()
    assert set(verify(locate("someone/refunds"))) == OWN
    push(folder, "someone/refunds", license="mit")  # what it says already
    asked = len(login.requests)
    one_line(
        lambda: push(folder, "someone/refunds", license="apache-2.0"),
        "was edited by hand",
        "write 'license: apache-2.0'",
    )
    assert len(login.requests) == asked
    card.unlink()
    push(folder, "someone/refunds", license="apache-2.0")
    assert ModelCard.load(locate("someone/refunds") / "README.md").data.license == "apache-2.0"
    assert load(locate("someone/refunds")).extra["license"] == "apache-2.0"


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "ptuning.json"])
def test_an_altered_folder_is_refused_before_anything_is_sent(login: Hub, folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    one_line(lambda: push(folder, "someone/refunds"), name, "was altered or cut short")
    assert login.requests == []


def test_a_folder_of_something_else_is_refused_before_anything_is_sent(login: Hub, tmp_path: Path) -> None:
    one_line(lambda: push(tmp_path, "someone/refunds"), "it has no ptuning.json")
    assert login.requests == []


# ------------------------------------------------------------------------------ who may, and where to


def test_a_private_repository_is_for_its_owner(
    login: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(folder, "someone/refunds", private=True)
    assert login.repositories["someone/refunds"].private
    assert load(locate("someone/refunds")).task.labels == ("no", "yes")
    shutil.rmtree(constants.HF_HUB_CACHE)
    monkeypatch.delenv("HF_TOKEN")
    one_line(lambda: locate("someone/refunds"), "no such repository, or it is private", "hf auth login")
    one_line(lambda: locate("someone/refunds", token="hf_reader"), "no such repository, or it is private")
    assert load(locate("someone/refunds", token="hf_someone")).task.labels == ("no", "yes")


def test_a_push_changes_no_visibility(login: Hub, folder: Path) -> None:
    push(folder, "someone/refunds")
    there = login.repositories["someone/refunds"]
    another(folder)
    one_line(
        lambda: push(folder, "someone/refunds", private=True),
        "exists and is public",
        "someone/refunds/settings",
    )
    assert not there.private
    assert len(there.commits) == 2
    push(folder, "someone/refunds", private=False)
    push(folder, "someone/secret", private=True)
    push(another(folder, 2), "someone/secret")
    assert login.repositories["someone/secret"].private


def test_a_name_alone_is_the_users_own(login: Hub, folder: Path) -> None:
    assert push(folder, "refunds").startswith(f"{constants.ENDPOINT}/someone/refunds/commit/")
    card = login.repositories["someone/refunds"].files()["README.md"].decode()
    assert 'from_pretrained("someone/refunds")' in card


def test_a_repository_of_something_else_is_left_alone(login: Hub, folder: Path, tiny_folder: Path) -> None:
    there = login.add_folder("someone/tiny-bert", tiny_folder)
    one_line(lambda: push(folder, "someone/tiny-bert"), "has config.json and no ptuning.json", "another name")
    assert len(there.commits) == 1


@pytest.mark.parametrize("name", ["a/b/c", "two words", "a--b/c", "", "-x", "x" * 97])
def test_what_is_no_name_of_the_hub(login: Hub, folder: Path, name: str) -> None:
    one_line(lambda: push(folder, name), repr(name), "expected a Hub id such as 'owner/name'")
    assert login.requests == []


def test_the_token_comes_from_the_login_too(hub: Hub, folder: Path) -> None:
    file = Path(constants.HF_TOKEN_PATH)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("hf_someone")
    push(folder, "someone/refunds", private=True)
    assert load(locate("someone/refunds")).virtual_tokens == 4


def test_without_a_token(hub: Hub, folder: Path) -> None:
    for token in (None, False, ""):
        one_line(
            lambda token=token: push(folder, "someone/refunds", token=token),  # type: ignore[misc]
            "needs an access token",
            "hf auth login",
            "set HF_TOKEN",
        )
    one_line(lambda: push(folder, "someone/refunds", token="hf_some\none"), "contains spaces or invalid")
    assert hub.requests == []


def test_a_token_that_the_hub_does_not_know(
    hub: Hub, folder: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_folder("someone/refunds", folder)
    words = ("does not accept the access token", "hf auth login", "HF_TOKEN", "/settings/tokens")
    one_line(lambda: push(folder, "someone/refunds", token="hf_wrong"), *words)
    one_line(lambda: push(folder, "refunds", token="hf_wrong"), *words)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    one_line(lambda: locate("someone/refunds"), *words)


def test_a_token_that_only_reads(hub: Hub, folder: Path) -> None:
    there = hub.add_folder("someone/refunds", folder)
    there.commit({**there.files(), "README.md": b"old"}, "older card")
    hub.tokens["hf_reads"] = type(hub.tokens["hf_reader"])("someone", writes=False)
    for name, token, user in (
        ("reader/refunds", "hf_reader", "reader"),
        ("someone/refunds", "hf_reads", "someone"),
        ("someone/refunds", "hf_reader", "reader"),
    ):
        one_line(
            lambda name=name, token=token: push(folder, name, token=token),  # type: ignore[misc]
            f"the user {user!r} has no permission",
            repr(name),
            "a name of your own",
        )
    assert len(there.commits) == 2


def test_a_gated_repository(hub: Hub, folder: Path) -> None:
    hub.add_folder("someone/refunds", folder, gated=True)
    page = f"{constants.ENDPOINT}/someone/refunds"
    one_line(lambda: locate("someone/refunds"), "is gated", f"ask for access at {page}", "hf auth login")
    one_line(lambda: locate("someone/refunds", token="hf_reader"), "is gated")
    assert load(locate("someone/refunds", token="hf_someone")).virtual_tokens == 4


# ----------------------------------------------------------------------------------- when it goes wrong


def test_offline(login: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub_module.known.cache_clear()
    one_line(lambda: push(folder, "someone/refunds"), "nothing was pushed", "unset HF_HUB_OFFLINE")
    assert login.requests == []


def test_a_host_that_nobody_knows(login: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.example")
    monkeypatch.setattr(hub_module.socket, "getaddrinfo", unknown)
    hub_module.known.cache_clear()
    words = ("hub.example does not answer", "check the connection")
    one_line(lambda: push(folder, "someone/refunds"), "nothing was pushed", *words)
    one_line(lambda: locate("someone/refunds"), "the Hub's cache has no complete copy", *words)


def test_a_host_that_does_not_answer(login: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    one_line(lambda: push(folder, "someone/refunds"), "the Hub at http://127.0.0.1:1 does not answer")
    one_line(
        lambda: locate("someone/refunds"), "the Hub's cache has no complete copy", "check the connection"
    )


def test_a_proxy_for_others_is_none_for_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_PROXY, or a proxy that the Hub is exempt from, must not hide that its name is unknown."""

    def unknown(*_: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(hub_module.socket, "getaddrinfo", unknown)
    for proxy, exempt, out in (
        ("", "127.0.0.1", True),
        ("http://p:1", "127.0.0.1", True),
        ("http://p:1", "", False),
    ):
        monkeypatch.setenv("http_proxy", proxy)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, exempt)
        hub_module.known.cache_clear()
        assert hub_out_of_reach() is out


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (429, ("too many requests", "wait a few minutes")),
        (500, ("the Hub failed (HTTP 500)", "try again later")),
        (503, ("the Hub failed (HTTP 503)", "try again later")),
    ],
)
def test_a_hub_in_trouble(login: Hub, folder: Path, status: int, words: tuple[str, ...]) -> None:
    login.fail("POST", "/api/repos/create", status)
    login.fail("GET", "/api/models/", status)
    one_line(lambda: push(folder, "someone/refunds"), *words)
    one_line(lambda: locate("someone/refunds"), *words)


@pytest.mark.parametrize("status", [500, None], ids=["error", "hung up"])
@pytest.mark.parametrize(
    ("method", "part"),
    [("POST", "/preupload/"), ("POST", "/lfs/objects/batch"), ("PUT", "/lfs/"), ("POST", "/commit/")],
)
def test_a_push_that_breaks_off_leaves_the_old_commit(
    login: Hub, folder: Path, method: str, part: str, status: int | None
) -> None:
    push(folder, "someone/refunds")
    there = login.repositories["someone/refunds"]
    head, old = there.branches["main"], load(folder).prompt_tensor
    another(folder)
    login.fail(method, part, status)
    word = "the Hub failed (HTTP 500)" if status else "does not answer"
    one_line(lambda: push(folder, "someone/refunds"), word)
    assert there.branches["main"] == head
    login.failures.clear()
    assert torch.equal(load(locate("someone/refunds")).prompt_tensor, old)
    push(folder, "someone/refunds")
    assert torch.equal(load(locate("someone/refunds")).prompt_tensor, load(folder).prompt_tensor)


def test_ctrl_c_leaves_the_old_commit(
    login: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    push(folder, "someone/refunds")
    head = login.repositories["someone/refunds"].branches["main"]
    another(folder)
    upload = HfApi.preupload_lfs_files

    def interrupted(*args: Any, **options: Any) -> None:
        upload(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(HfApi, "preupload_lfs_files", interrupted)
    assert main(["push", str(folder), "someone/refunds"]) == 130
    assert capsys.readouterr().err.endswith("ptuning: interrupted\n")
    assert len(login.objects) == 2  # it had got that far
    assert login.repositories["someone/refunds"].branches["main"] == head


def test_two_pushes_at_once_never_mix(login: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Did it not name the commit it builds on, a push would skip files that the other one has changed."""
    push(folder, "someone/refunds")
    there = login.repositories["someone/refunds"]
    upload = HfApi.preupload_lfs_files

    def overtaken(*args: Any, **options: Any) -> None:
        upload(*args, **options)
        there.commit({**there.files(), "adapter_model.safetensors": b"theirs"}, "theirs")

    monkeypatch.setattr(HfApi, "preupload_lfs_files", overtaken)
    one_line(
        lambda: push(folder, "someone/refunds", license="apache-2.0"),
        "was changed at the same time",
        "push again",
    )
    assert there.messages[-1] == "theirs"


def test_metadata_that_the_hub_does_not_take(login: Hub, folder: Path) -> None:
    one_line(
        lambda: push(folder, "someone/refunds", license="made-up"),
        "Invalid metadata in README.md",
        '"license"',
    )
    assert "someone/refunds" not in login.repositories  # nothing was made for it


def test_no_folder_of_this_machine_is_published(
    login: Hub, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backbone that was a folder here goes under its own name alone, or under the one that is given."""
    made = PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=2), num_labels=2)
    folder = made.save_pretrained(tmp_path / "adapter")
    push(folder, "someone/refunds")
    pushed = login.repositories["someone/refunds"].files()
    assert not any(str(tiny_folder.parent).encode() in data for data in pushed.values())
    assert json.loads(pushed["ptuning.json"])["backbone"]["name"] == f"./{tiny_folder.name}"
    # Nobody may take it for a model of the Hub that has this name.
    assert b"base_model:" not in pushed["README.md"]
    assert json.loads(pushed["adapter_config.json"])["base_model_name_or_path"] == f"./{tiny_folder.name}"
    with pytest.raises(BackboneNotFound, match=f"{tiny_folder.name}.*--backbone"):
        PTuningModel.from_pretrained("someone/refunds")
    there = PTuningModel.from_pretrained("someone/refunds", backbone=str(tiny_folder))
    assert torch.equal(logits(there), logits(made))
    login.add_folder("someone/tiny-bert", tiny_folder)
    push(folder, "someone/refunds", backbone="someone/tiny-bert")
    assert torch.equal(logits(PTuningModel.from_pretrained("someone/refunds")), logits(made))


def test_a_token_opens_the_backbone_as_well(
    hub: Hub, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a private backbone and a private adapter on it, with nobody logged in."""
    hub.add_folder("someone/base", tiny_folder, private=True)
    with pytest.raises(BackboneNotFound, match="'someone/base' could not be loaded"):
        PTuningModel.from_backbone("someone/base")
    model = PTuningModel.from_backbone("someone/base", num_labels=2, token="hf_someone")
    model.save_pretrained(tmp_path / "adapter")
    hub.add_folder("someone/film", tmp_path / "adapter", private=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another"))
    back = PTuningModel.from_pretrained("someone/film", token="hf_someone")
    assert back.tokenizer is not None
    assert torch.equal(back.backbone.embedding.weight, model.backbone.embedding.weight)


def test_the_stand_in_holds_its_users_to_their_rights(hub: Hub, folder: Path) -> None:
    """Guards the tests above: a stand-in that lets everyone do everything would pass some of them."""
    api = HfApi(token="hf_reader")
    with pytest.raises(Exception, match="403"):
        api.create_repo("reader/new")
    hub.add_folder("someone/secret", folder, private=True)
    with pytest.raises(Exception, match="404"):
        api.model_info("someone/secret")
    with pytest.raises(ValueError, match=r"metrics\[0\].value"):
        api._validate_yaml(
            "---\nmodel-index:\n- name: x\n  results:\n  - task: {type: t}\n    dataset: {type: d, name: d}\n"
            "    metrics: [{type: accuracy}]\n---\n"
        )
    assert not hub.repositories["someone/secret"].branches.keys() - {"main"}
