"""Cloze heads: the scores are those of a hand-made template through plain transformers."""

from __future__ import annotations

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from language_models import LABELS, language_model
from mixed import shaken
from ptuning import ClozeHead, DeepPrompt, Engine, InputPrompt, PTuningModel, Task, TaskTable
from ptuning.data.examples import Example
from ptuning.data.tokens import Tokenise, collate
from ptuning.errors import AdapterError, AdapterMismatch, ConfigError, DataError, UnsupportedBackbone
from ptuning.inference import MultiPredictor
from ptuning.model.packed import pack
from ptuning.threads import GENERATORS
from reference import SlowReference
from test_adapters_schema import JUNK, places, record, write

VERBALIZER = {"negative": ("terrible", "dull"), "positive": "great"}
TASK = Task(problem_type="single_label_classification", labels=LABELS)
PAIRS = Task(problem_type="single_label_classification", labels=("no", "yes"), pair=True)
TEXTS = ("a great film", "dull", "the plot is good , and the acting is bad")
SECONDS = ("a film", "good and bad", "no")

MASKED = (
    *("bert", "roberta, two segments", "albert", "distilbert", "electra", "deberta-v2", "mpnet"),
    "modernbert, mean pooling",
)
CAUSAL = ("gpt2", "opt", "bloom", "gemma2", "gemma3_text, sliding", "qwen3_moe", "nemotron")
"""Those whose language model heads differ; all others in the table were compared in the same way."""


def template(model: PreTrainedModel) -> str:
    return "{text} It was {mask}." if "Masked" in type(model).__name__ else "{text} It was"


def batch(model: PTuningModel, texts: Any, seconds: Any = None) -> dict[str, Tensor]:
    assert model.tokenizer is not None
    examples = [
        Example(row=i + 1, text=text, text_b=None if seconds is None else seconds[i])
        for i, text in enumerate(texts)
    ]
    return collate(Tokenise.for_model(model)(examples), model.tokenizer.pad_token_id)


def by_hand(
    model: PreTrainedModel, words: PreTrainedTokenizerBase, filled: str | tuple[str, str], verbalizer: Any
) -> Tensor:
    """``[C]``: the logits of the whole vocabulary at the mask, or at the last token; then the means."""
    pair = (filled,) if isinstance(filled, str) else filled
    inputs = words(*pair, return_tensors="pt", return_token_type_ids=True)
    if getattr(model.config, "type_vocab_size", 0) < 2:
        del inputs["token_type_ids"]
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    return scores(logits, inputs["input_ids"][0], words, verbalizer)


def scores(logits: Tensor, ids: Tensor, words: PreTrainedTokenizerBase, verbalizer: Any) -> Tensor:
    place = -1 if words.mask_token_id is None else ids.tolist().index(words.mask_token_id)
    found = []
    for of_label in verbalizer:
        means = []
        for word in of_label:
            tokens = words("It was " + word, add_special_tokens=False)["input_ids"]
            tokens = tokens[len(words("It was", add_special_tokens=False)["input_ids"]) :]
            means.append(logits[place][tokens].mean())
        found.append(torch.stack(means).mean())
    return torch.stack(found)


@pytest.fixture(params=[*MASKED, *CAUSAL])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[PreTrainedModel, Path]:
    """Every architecture's head, with a language model's own tokenizer."""
    return on_disk(request.param, tmp_path), tmp_path


@pytest.fixture(params=["bert", "roberta", "deberta-v2", "gpt2", "bloom", "gemma3_text, sliding"])
def some(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[PreTrainedModel, Path]:
    """Each way through the layers."""
    return on_disk(request.param, tmp_path), tmp_path


def on_disk(case: str, folder: Path) -> PreTrainedModel:
    return language_model(folder, case, way="words closed" if case == "bert" else "")


def test_without_a_prompt_it_is_the_hand_made_template(made: tuple[PreTrainedModel, Path]) -> None:
    plain, folder = made
    head = ClozeHead(template=template(plain), verbalizer=VERBALIZER)
    model = PTuningModel.from_backbone(str(folder), InputPrompt(head=head), task=TASK).eval()
    words: Any = model.tokenizer
    with torch.no_grad():
        found = model.plain()(**batch(model, TEXTS)).logits
    for text, logits in zip(TEXTS, found, strict=True):
        filled = head.template.format(text=text, mask=words.mask_token)
        expected = by_hand(plain, words, filled, (("terrible", "dull"), ("great",)))
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("slots", ["", "{prompt:2} "], ids=["front", "among words"])
def test_an_input_prompt_is_among_the_embeddings(some: tuple[PreTrainedModel, Path], slots: str) -> None:
    plain, folder = some
    written = template(plain).replace("It", f"{slots}It")
    head = ClozeHead(template=written, verbalizer=VERBALIZER)
    config = InputPrompt(head=head, num_virtual_tokens=2)
    model = PTuningModel.from_backbone(str(folder), config, task=TASK).eval()
    words: Any = model.tokenizer
    with torch.no_grad():
        found = model(**batch(model, TEXTS)).logits
        prompt = model.prompt_encoder()
    for text, logits in zip(TEXTS, found, strict=True):
        inputs = words(template(plain).format(text=text, mask=words.mask_token), return_tensors="pt")
        ids = inputs["input_ids"]
        place = len(words(text)["input_ids"]) - (words.mask_token_id is not None) if slots else 1
        embedded = plain.get_input_embeddings()(ids)[0]
        joined = torch.cat((embedded[:place], prompt, embedded[place:]))[None]
        with torch.no_grad():
            out = plain(inputs_embeds=joined, attention_mask=torch.ones(joined.shape[:2]).long()).logits[0]
        out = torch.cat((out[:place], out[place + 2 :])) if words.mask_token_id is not None else out
        expected = scores(out, ids[0], words, (("terrible", "dull"), ("great",)))
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_deep_prompt_is_in_the_layers(some: tuple[PreTrainedModel, Path]) -> None:
    plain, folder = some
    head = ClozeHead(template=template(plain), verbalizer=VERBALIZER)
    config = DeepPrompt(head=head, num_virtual_tokens=3)
    model = PTuningModel.from_backbone(str(folder), config, task=TASK).eval()
    words: Any = model.tokenizer
    with torch.no_grad():
        model.prompt_encoder.weight.normal_(0, 0.5)
        found = model(**batch(model, TEXTS)).logits
        prompt = model.prompt_encoder()
    reference = SlowReference(plain)
    if reference.kind == "bloom":  # the reference returns what its score makes of the last token
        reference.model.score = reference.model.lm_head
    for text, logits in zip(TEXTS, found, strict=True):
        ids = words(head.template.format(text=text, mask=words.mask_token), return_tensors="pt")["input_ids"][
            0
        ]
        out = reference.logits(ids.tolist(), prompt, position_offset=model.position_offset)
        out = out[None] if out.dim() == 1 else out
        expected = scores(out, ids, words, (("terrible", "dull"), ("great",))).float()
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_pairs_and_several_texts_around_them(some: tuple[PreTrainedModel, Path]) -> None:
    """An encoder's separator stays between the texts; a decoder's text runs on."""
    plain, folder = some
    masked = "Masked" in type(plain).__name__
    written = "{text_a} ? {mask} , {text_b} ." if masked else "{text_a} \n {text_b} \n same ?"
    verbalizer = {"no": "different", "yes": "equivalent"}
    head = ClozeHead(template=written, verbalizer=verbalizer)
    model = PTuningModel.from_backbone(str(folder), DeepPrompt(head=head), task=PAIRS).eval()
    words: Any = model.tokenizer
    with torch.no_grad():
        found = model.plain()(**batch(model, TEXTS, SECONDS)).logits
    of_label = tuple((word,) for word in verbalizer.values())
    for text, second, logits in zip(TEXTS, SECONDS, found, strict=True):
        if masked:
            expected = in_pieces(plain, words, text, f" ? {words.mask_token} ,", second)
        else:
            ids = [words.bos_token_id]
            for part in (text, " \n", second, " \n same ?"):  # a text is tokenised by itself
                ids += words(part, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                expected = plain(input_ids=torch.tensor([ids])).logits[0]
            ids = torch.tensor(ids)
            expected = scores(expected, ids, words, of_label)
        if masked:
            expected = scores(*expected, words, of_label)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def in_pieces(
    plain: PreTrainedModel, words: PreTrainedTokenizerBase, text: str, between: str, second: str
) -> tuple[Tensor, Tensor]:
    """The logits and ids of ``<s> text </s> between second . </s>``."""
    parts = [words(part, add_special_tokens=False)["input_ids"] for part in (text, between, second, " .")]
    first = [words.bos_token_id, *parts[0], words.eos_token_id]
    rest = [*parts[1], *parts[2], *parts[3], words.eos_token_id]
    ids = torch.tensor([first + rest])
    inputs = {"input_ids": ids, "token_type_ids": torch.tensor([[0] * len(first) + [1] * len(rest)])}
    if getattr(plain.config, "type_vocab_size", 0) < 2:
        del inputs["token_type_ids"]
    with torch.no_grad():
        return plain(**inputs).logits[0], ids[0]


# ------------------------------------------------------------------------------- saved and shared


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("language-models")
    for case in ("roberta", "llama"):
        on_disk(case, root / case)
    return {case: root / case for case in ("roberta", "llama")}


def tasks_on(folder: Path) -> list[PTuningModel]:
    """Cloze heads with each kind of prompt, and two classification heads, on one backbone."""
    text = "{text} It was {mask}." if folder.name == "roberta" else "{text} It was"
    head = ClozeHead(template=text, verbalizer=VERBALIZER)
    among = ClozeHead(template=text.replace("{text}", "Review: {text} {prompt:2}"), verbalizer=VERBALIZER)
    other = ClozeHead(template=f"Review: {text}")
    before = ClozeHead(template=f"Review: {{prompt:3}} {text.replace(' It was', '')}", verbalizer=VERBALIZER)
    first = PTuningModel.from_backbone(str(folder), DeepPrompt(head=head, num_virtual_tokens=3), task=TASK)
    configs: list[Any] = [
        InputPrompt(head=head, num_virtual_tokens=4),
        InputPrompt(head=among),
        InputPrompt(head=other, num_virtual_tokens=2, placement="end"),
        DeepPrompt(head=other, num_virtual_tokens=1, first_layer=1, num_virtual_units=2),
        DeepPrompt(num_virtual_tokens=2, pooling="mean"),
        InputPrompt(num_virtual_tokens=3),
        InputPrompt(head=before),
    ]
    more = [
        PTuningModel.from_backbone(first.backbone, config, task=TASK, tokenizer=first.tokenizer)
        for config in configs
    ]
    return [shaken(model) for model in (first, *more)]


@pytest.mark.parametrize("case", ["roberta", "llama", "llama, at the input"])
def test_rows_of_cloze_and_other_tasks_share_passes(case: str, folders: dict[str, Path]) -> None:
    models = tasks_on(folders[case.partition(",")[0]])
    assert models[0].tokenizer is not None
    table = TaskTable(models[0].backbone, models[0].tokenizer)
    for number, model in enumerate(models):
        table.put(f"task-{number}", model)
    if case.endswith("input"):  # not in keys and values, as where a sliding window would exclude them
        table.backbone.engine = Engine(shared_prompt=False)
    predictor = MultiPredictor(table, models[0].tokenizer)
    rows = [{"text": text, "task": f"task-{number}"} for number in range(len(models)) for text in TEXTS]
    answers = predictor.predict([row["text"] for row in rows], [row["task"] for row in rows])
    for row, answer in zip(rows, answers, strict=True):
        model = models[int(row["task"].removeprefix("task-"))]
        with torch.no_grad():
            logits = model(**batch(model, [row["text"]])).logits[0]
        probabilities = logits.softmax(-1).tolist()
        assert [p for _, p in answer.probabilities] == pytest.approx(probabilities, abs=1e-5), row


def test_a_record_with_any_field_corrupted(folders: dict[str, Path], tmp_path: Path) -> None:
    """It is refused by name, or means the same."""
    model = tasks_on(folders["roberta"])[0]
    folder, inputs = model.save_pretrained(tmp_path / "adapter"), batch(model, TEXTS)
    whole = record(folder)
    with torch.no_grad():
        right = model(**inputs).logits
    said = []
    own = [
        place
        for place in places(whole)
        if place[0] in ("cloze", "anchors") or place[:2] == ("prompt", "head")
    ]
    assert len(own) > 6
    for place in own:
        for junk in ("(left out)", *JUNK):
            values = copy.deepcopy(whole)
            inner = values
            for name in place[:-1]:
                inner = inner[name]
            inner[place[-1]] = junk
            if junk == "(left out)":
                del inner[place[-1]]
            write(folder, values)
            try:
                loaded = PTuningModel.from_pretrained(folder, backbone=model.backbone)
            except AdapterError as error:
                said.append(str(error))
            else:
                with torch.no_grad():
                    assert torch.equal(loaded(**inputs).logits, right), (place, junk)
    assert len(said) > 80
    assert [each for each in said if "\n" in each or len(each) > 1500] == []
    for changed, message in (
        ({"words": [[[5]]]}, r"cloze\.words: got those of 1 labels, expected 2"),
        ({"words": [[[5]], [[10**6]]]}, r"cloze\.words: got the token id 1000000"),
        ({"mask": 0}, r"cloze\.mask: got 0"),
        ({"mask": None}, "has no mask"),
        ({"head": "0" * 64}, "language model head"),
    ):
        write(folder, {**whole, "cloze": {**whole["cloze"], **changed}})
        with pytest.raises(AdapterError, match=message):
            PTuningModel.from_pretrained(folder)


def test_a_record_that_contradicts_itself(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tasks_on(folders["roberta"])[0].save_pretrained(tmp_path / "adapter")
    whole = record(folder)
    two, one = whole["cloze"]["words"]
    head = whole["prompt"]["head"]
    open_backbone = {**whole["backbone"], "vocab_size": None}
    for changed, message in (
        ({"cloze": {**whole["cloze"], "words": [two, [*one, *one]]}}, "got 2 words of the label 'positive'"),
        (
            {"cloze": {**whole["cloze"], "words": [[[5, 6], [6, 5]], [[5, 6]]]}},
            "the same tokens for two labels",
        ),
        (
            {"prompt": {**whole["prompt"], "head": {**head, "verbalizer": {"odd": ["a"]}}}},
            r"prompt\.head\.verbalizer: got the label 'odd'",
        ),
        ({"anchors": [[]], "cloze": {**whole["cloze"], "mask": None}}, "anchors: got no tokens"),
        (
            {"backbone": open_backbone, "cloze": {**whole["cloze"], "words": [two, [[10**6]]]}},
            "cloze.words.*token id 1000000",
        ),
        (
            {"backbone": open_backbone, "anchors": [[*whole["anchors"][0], 10**6]]},
            "anchors.*token id 1000000",
        ),
    ):
        write(folder, {**whole, **changed})
        with pytest.raises(AdapterError, match=message):
            PTuningModel.from_pretrained(folder)


@pytest.mark.parametrize("case", ["roberta", "llama"])
def test_saved_and_loaded_to_the_bit(case: str, folders: dict[str, Path], tmp_path: Path) -> None:
    for number, model in enumerate(tasks_on(folders[case])[:5]):
        folder = model.save_pretrained(tmp_path / str(number))
        loaded = PTuningModel.from_pretrained(folder)
        inputs = batch(model, TEXTS)
        with torch.no_grad():
            assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
        names = {name for name, _ in model.named_parameters()}
        assert names <= {"prompt_encoder.weight", "units.weight"}  # nothing of the head is the task's
        other = PTuningModel.from_pretrained(folder)
        other.load_state_dict(model.state_dict())
        card = (folder / "README.md").read_text("utf-8")
        head = model.prompt_config.head
        assert head is not None
        assert head.template in card
        assert "PEFT cannot load this adapter: it has a cloze head" in card


def test_a_state_dict_alone_is_opened_as_the_task(folders: dict[str, Path], tmp_path: Path) -> None:
    """As transformers' Trainer saves it."""
    for model in tasks_on(folders["roberta"])[:3]:
        folder = tmp_path / str(id(model))
        folder.mkdir()
        save_file(model.state_dict(), folder / "model.safetensors")
        opened, inputs = PTuningModel.from_pretrained(folder), batch(model, TEXTS)
        with torch.no_grad():
            assert torch.equal(opened(**inputs).logits, model(**inputs).logits)


def test_other_labels_get_words_of_their_own(folders: dict[str, Path]) -> None:
    model = tasks_on(folders["llama"])[0]
    more = model.with_labels(("positive", "okay", "negative"))
    with torch.no_grad():
        old, new = (each(**batch(model, TEXTS)).logits for each in (model, more))
    torch.testing.assert_close(new[:, [2, 0]], old)
    assert new.shape == (3, 3)


def test_without_segments_an_encoders_last_token_is_special(folders: dict[str, Path]) -> None:
    model = tasks_on(folders["roberta"])[0]
    words: Any = model.tokenizer
    plain = words(list(TEXTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**plain).logits, model(**batch(model, TEXTS)).logits)


def test_hidden_states_are_those_of_the_text(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        for model in tasks_on(folder)[:4]:
            ids = batch(model, TEXTS)
            with torch.no_grad():
                many = model.encode(**ids)
                length = int(ids["attention_mask"][0].sum())
                row = model.encode(**{name: value[:1, :length] for name, value in ids.items()})
            real = ids["attention_mask"][0].bool()
            torch.testing.assert_close(many[0][real], row[0], rtol=1e-4, atol=1e-4)


def test_the_head_is_frozen_and_the_prompt_learns(folders: dict[str, Path]) -> None:
    model = tasks_on(folders["roberta"])[0].train()
    model(**batch(model, TEXTS), labels=torch.tensor([1, 0, 1])).loss.backward()
    head = model.backbone.language_head
    assert all(value.grad is None for value in head._model.parameters())
    assert float(model.prompt_encoder.weight.grad.abs().sum()) > 0


def test_it_moves_and_is_rounded_with_the_backbone(folders: dict[str, Path], tmp_path: Path) -> None:
    model = tasks_on(folders["roberta"])[0]
    folder, inputs = model.save_pretrained(tmp_path / "adapter"), batch(model, TEXTS)
    with torch.no_grad():
        exact = model(**inputs).logits
    rounded = PTuningModel.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        found = rounded(**inputs).logits
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0.3)
    rounded.to(torch.float32)
    assert rounded.backbone.language_head.digest == model.backbone.language_head.digest


def test_the_words_rows_are_those_of_the_rounded_weights(folders: dict[str, Path]) -> None:
    """A row alone and in a mixed batch have the same ones."""
    model = tasks_on(folders["roberta"])[0].to(torch.bfloat16)
    assert model.verbalizer is not None
    assert torch.equal(model.verbalizer.weight, model.verbalizer.weight.bfloat16().float())
    assert torch.equal(model.verbalizer.weight, pack(model).words["weight"])


def test_a_forward_pass_waits_for_no_other_thread(folders: dict[str, Path]) -> None:
    """One that draws random numbers, or loads a backbone."""
    model = tasks_on(folders["roberta"])[0]
    inputs = batch(model, TEXTS)
    with ThreadPoolExecutor(1) as other, GENERATORS:
        assert other.submit(lambda: model(**inputs)).result(timeout=30).logits.isfinite().all()


# -------------------------------------------------------------------------------------- refusals


def made_with(folder: Path, task: Task = TASK, *, deep: bool = True, **head: Any) -> PTuningModel:
    kind: Any = DeepPrompt if deep else InputPrompt
    return PTuningModel.from_backbone(str(folder), kind(head=ClozeHead(**head)), task=task)


def test_what_it_refuses(folders: dict[str, Path]) -> None:
    masked, causal, fine = folders["roberta"], folders["llama"], "{text} It was {mask}."
    numbers = Task(problem_type="regression")
    several = Task(problem_type="multi_label_classification", labels=LABELS)
    for make, problem in (
        (lambda: made_with(masked, template="{text} It was"), r"masked language model.*without \{mask\}"),
        (lambda: made_with(causal, template=fine), r"cannot see the words after \{mask\}"),
        (lambda: made_with(masked, numbers, template=fine), "a number has no word.*got a regression"),
        (lambda: made_with(masked, several, template=fine), "cannot answer yes or no each"),
        (lambda: made_with(masked, template="{text} {mask} {prompt:2}"), "a deep prompt is in the layers"),
        (lambda: made_with(masked, template="{text} {mask} {mask}"), "got 2 masks"),
        (lambda: made_with(causal, template="{text} 💥 was"), "does not know all of ' 💥 was'"),
        (lambda: made_with(masked, template="{text} {mask} <mask>"), "finds 2 masks in its words"),
        (lambda: made_with(masked, template=fine, verbalizer={"positve": "a"}), "did you mean 'positive'"),
        (lambda: made_with(masked, template=fine, verbalizer={"positive": []}), "expected at least one"),
        (lambda: ClozeHead(template=fine, verbalizer={1: "a", "1": "b"}), "each label once.*'1'"),  # type: ignore[dict-item]
        (lambda: ClozeHead(template="{text"), r"got no \{text\}"),
        (lambda: ClozeHead(template="It was {mask}"), r"got no \{text\}"),
        (
            lambda: made_with(masked, template="{text} {mask}" + " bad" * 700),
            "the 702 tokens of the template .* leave too few of .* use a shorter template",
        ),
        (
            lambda: PTuningModel.from_backbone(
                str(masked), DeepPrompt(head=ClozeHead(template=fine, verbalizer=VERBALIZER)), num_labels=3
            ),
            "num_labels: got 3, expected 2, the number of labels in prompt.head.verbalizer",
        ),
        (lambda: ClozeHead(template=fine, verbalizer="good"), "expected a mapping from label to words"),  # type: ignore[arg-type]
        (
            lambda: made_with(
                masked, template=fine, verbalizer={"negative": "good bad", "positive": "bad good"}
            ),
            "'negative' and 'positive' would always have the same score",
        ),
        (
            lambda: InputPrompt(head=ClozeHead(template="{text} {prompt:2} {mask}"), placement="end"),
            "leave one of them out",
        ),
        (
            lambda: InputPrompt(head=ClozeHead(template="{text} {mask}"), placement="{prompt:2} {text}"),
            r"put the \{prompt:N\} slots into prompt.head.template",
        ),
        (
            lambda: PTuningModel.from_backbone(
                str(masked), DeepPrompt(head=ClozeHead(template=fine), pooling="mean"), task=TASK
            ),
            "which reads the one token",
        ),
    ):
        with pytest.raises(ConfigError, match=f"(?s){problem}"):
            make()


def test_words_between_texts_that_are_not_told_apart(folders: dict[str, Path]) -> None:
    model = made_with(folders["roberta"], PAIRS, template="{text_a} {mask} , {text_b}")
    words: Any = model.tokenizer
    with pytest.raises(DataError, match=r"has '\{mask\} ,' before the second text.*pass segment_ids"):
        model(**words(list(TEXTS), list(SECONDS), padding=True, return_tensors="pt"))


def test_an_adapter_with_new_labels_needs_a_tokenizer(folders: dict[str, Path]) -> None:
    model = tasks_on(folders["roberta"])[0]
    model.tokenizer = None
    with pytest.raises(AdapterError, match=r"pass tokenizer=…$"):
        model.with_labels(("positive", "okay", "negative"))


def test_a_checkpoint_without_a_language_model_head(tiny_folder: Path) -> None:
    with pytest.raises(UnsupportedBackbone, match=r"the checkpoint has none.*lacks cls\.predictions"):
        made_with(tiny_folder, template="{text} {mask}")


def test_another_language_model_head(folders: dict[str, Path], tmp_path: Path) -> None:
    """The transformer is the same one."""
    folder = tasks_on(folders["roberta"])[0].save_pretrained(tmp_path / "adapter")
    other = language_model(tmp_path / "other", "roberta")
    with torch.no_grad():
        other.lm_head.dense.weight.add_(1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(AdapterMismatch, match="language model head"):
        PTuningModel.from_pretrained(folder, backbone=str(tmp_path / "other"))


def test_another_soft_cap(tmp_path: Path) -> None:
    """All weights are the same ones."""
    language_model(tmp_path / "backbone", "gemma2")
    folder = made_with(tmp_path / "backbone", template="{text} It was").save_pretrained(tmp_path / "adapter")
    settings = json.loads((tmp_path / "backbone" / "config.json").read_text())
    settings["final_logit_softcapping"] = 5.0
    (tmp_path / "backbone" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(AdapterMismatch, match="language model head"):
        PTuningModel.from_pretrained(folder)


def test_a_text_is_cut_and_the_template_is_not(folders: dict[str, Path]) -> None:
    model = tasks_on(folders["roberta"])[1]
    limit = model.max_text_tokens
    assert limit is not None
    assert limit == model.backbone.max_positions - 4 - len(model.anchors[0])
    long = " ".join(["a great film"] * 100)
    inputs = batch(model, [long])
    assert inputs["input_ids"].shape[1] == limit
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


def test_labels_are_their_own_words(folders: dict[str, Path]) -> None:
    task = Task(problem_type="single_label_classification", labels=("not_good", "good"))
    model = made_with(folders["llama"], task, template="{text} It was {mask}")
    words: Any = model.tokenizer
    assert model.cloze is not None
    found = [words.convert_ids_to_tokens(list(word)) for label in model.cloze.words for word in label]
    assert found == [["▁not", "▁good"], ["▁good"]]


def test_spaces_in_front_of_words(folders: dict[str, Path]) -> None:
    """A word is tokenised as it follows the template's last word."""
    task = Task(problem_type="single_label_classification", labels=("good", "bad"))

    def first(template: str) -> str:
        model = made_with(folders["llama"], task, template=template)
        assert model.cloze is not None
        return str(model.tokenizer.convert_ids_to_tokens(model.cloze.words[0][0])[0])  # type: ignore[union-attr]

    assert first("{text} It was") == first("{text} It was {mask}") == first("{text}") == "▁good"
    assert made_with(folders["llama"], task, template="{text} {mask}").anchors == ((),)
    assert first("{text} It was ({mask}")[0] != "▁"
    assert first("{text} It was:\n")[0] != "▁"
