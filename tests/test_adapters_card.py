"""The model card: complete, true, and readable by the Hub."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt  # comes with rich

from ptuning.adapters import model_card, save
from ptuning.data import find_columns
from ptuning.task import Task
from test_adapters_record import an_adapter

METRICS: dict[str, Any] = {
    "baseline": {"accuracy": 0.665, "f1": 0.799},
    "validation": {"accuracy": 0.79},
    "test": {
        "accuracy": 0.781,
        "f1": 0.842,
        "rows": 1725,
        "confusion": [[1, 2], [3, 4]],
        "pearson": math.nan,
    },
}


def front_matter(card: str) -> Any:
    """What the Hub reads."""
    return ModelCard(card).data


def test_front_matter() -> None:
    adapter = an_adapter({"depth": "deep"}, metrics=METRICS, extra={"dataset": "nyu-mll/glue"})
    data = front_matter(model_card(adapter, name="paraphrase"))
    assert data.library_name == "ptuning"
    assert data.base_model == "someone/tiny-bert"
    assert data.pipeline_tag == "text-classification"
    assert data.tags == ["ptuning", "prompt-tuning", "p-tuning-v2", "single_label_classification"]
    assert data.model_name == "paraphrase"
    results = {(r.dataset_split, r.metric_type): r.metric_value for r in data.eval_results}
    assert results == {
        ("test", "accuracy"): 0.781,
        ("test", "f1"): 0.842,
        ("test", "rows"): 1725,
        ("validation", "accuracy"): 0.79,
    }
    assert {(r.dataset_type, r.dataset_name) for r in data.eval_results} == {("nyu-mll/glue", "nyu-mll/glue")}


def test_nothing_is_claimed_that_is_not_known() -> None:
    data = front_matter(model_card(an_adapter(facts={"name": "./my models/bert"})))
    assert data.eval_results is None
    assert data.base_model is None
    named = front_matter(model_card(an_adapter(metrics=METRICS, extra={"dataset": "my tickets.csv"})))
    assert {(r.dataset_type, r.dataset_name) for r in named.eval_results} == {("custom", "my tickets.csv")}


DATA: dict[str, Any] = {
    "train": {"source": "hf:nyu-mll/glue/mrpc:train", "rows": 3301},
    "validation": {"source": "split off", "rows": 367},
    "test": {"source": "film `new`.csv", "rows": 378},
}


def test_the_data() -> None:
    card = model_card(an_adapter(metrics=METRICS, extra={"data": DATA}))
    assert "- train: `hf:nyu-mll/glue/mrpc:train` (3,301 rows)\n" in card
    assert "- validation: 367 rows, split off from the training rows\n" in card
    assert "- test: ``film `new`.csv`` (378 rows)\n" in card
    data = front_matter(card)
    assert data.datasets == ["nyu-mll/glue"]
    places = {r.dataset_split: (r.dataset_type, r.dataset_name) for r in data.eval_results}
    assert places == {
        "test": ("custom", "film `new`.csv"),
        "validation": ("nyu-mll/glue", "hf:nyu-mll/glue/mrpc:train"),
    }
    local = front_matter(model_card(an_adapter(extra={"data": {"train": {"source": "film.csv", "rows": 1}}})))
    assert local.datasets is None


@pytest.mark.parametrize(
    "odd", ["films", 3, ["film.csv"], {"train": "film.csv"}, {"train": {}}, {3: {"rows": 1.5}}]
)
def test_what_someone_else_keeps_under_the_same_names_breaks_nothing(odd: Any) -> None:
    card = model_card(
        an_adapter(metrics=METRICS, extra=dict.fromkeys(("data", "fit", "rates", "license"), odd))
    )
    assert front_matter(card).datasets is None
    assert "## Data" in card


def test_the_training() -> None:
    fit = {"epochs": 8, "batch_size": 16, "prompt_rate": None, "schedule": "linear"}
    rates = {"prompt": 0.01, "head": 0.001}
    card = model_card(an_adapter(extra={"fit": fit, "rates": rates}))
    assert "## Training\n\n- epochs: `8`\n- batch size: `16`\n- schedule: `linear`\n" in card
    assert "- learning rates used: prompt `0.01`, head `0.001`\n" in card
    bare = model_card(an_adapter())
    assert "The training data was not recorded." in bare
    assert "The training options were not recorded." in bare


def test_the_licence() -> None:
    said = model_card(an_adapter(extra={"license": "cc-by-4.0"}))
    assert front_matter(said).license == "cc-by-4.0"
    assert "This adapter: `cc-by-4.0`. The licences of the backbone and of the data also apply." in said
    unsaid = model_card(an_adapter())
    assert front_matter(unsaid).license == "unknown"  # an identifier of the Hub's own list
    assert "The owner of this adapter has not stated a licence. The licences of the backbone" in unsaid


def test_metrics_stand_beside_the_baseline() -> None:
    card = model_card(an_adapter(metrics=METRICS))
    assert "| metric | test | validation | baseline |" in card
    assert "| accuracy | 0.7810 | 0.7900 | 0.6650 |" in card
    assert "| f1 | 0.8420 |  | 0.7990 |" in card
    assert "| rows | 1,725 |  |  |" in card
    assert "The baseline is a constant answer: always the most frequent label." in card
    own = model_card(an_adapter(metrics={**METRICS, "baseline_rule": "always no label"}))
    assert "The baseline is a constant answer: always no label." in own
    assert "confusion" not in card
    assert "Its loss" not in card
    card = model_card(an_adapter(metrics={**METRICS, "baseline": {**METRICS["baseline"], "loss": 0.64}}))
    assert (
        "frequent label. Its loss is for predicting each label with its frequency in the training rows."
        in card
    )
    assert "## Metrics" not in model_card(an_adapter())


def test_the_task() -> None:
    card = model_card(
        an_adapter(task=Task(problem_type="multi_label_classification", labels=("a`b", True, 3, "x\ny")))
    )
    assert "multi-label classification of texts" in card
    assert "  - ``a`b``\n  - `true`\n  - `3`\n  - `x\\ny`\n" in card
    many = model_card(
        an_adapter(task=Task(problem_type="single_label_classification", labels=tuple(range(77)), pair=True))
    )
    assert "classification of pairs of texts" in many
    assert "(77):" in many
    assert "  - and 27 more, listed in `ptuning.json`" in many
    scaled = model_card(an_adapter(task=Task(problem_type="regression", mean=2.5, scale=1.5, max_length=64)))
    assert "one number (trained on targets minus 2.5, divided by 1.5)" in scaled
    assert "maximum input length: 64 tokens" in scaled


def test_the_numbers_that_were_trained() -> None:
    assert "It has 98 trained parameters: 64 in the prompt, 34 in the head." in model_card(an_adapter())
    frozen = model_card(an_adapter({"train_head": False}))
    assert "It has 64 trained parameters: 64 in the prompt; the head was not trained." in frozen
    known = model_card(an_adapter(facts={"num_parameters": 9_800}))
    assert "That is 1.000% of the backbone's 9,800." in known


def test_how_to_use() -> None:
    card = model_card(an_adapter(facts={"revision": "abc123"}), name="my refunds")
    assert 'model = PTuningModel.from_pretrained("my refunds")' in card
    assert "ptuning predict 'my refunds' --input texts.txt" in card
    assert '"someone/tiny-bert", revision="abc123", num_labels=2, ignore_mismatched_sizes=True' in card
    assert 'PeftModel.from_pretrained(base, "my refunds")' in card
    other = model_card(an_adapter({"placement": "front"}))
    assert "PEFT cannot load this adapter: its virtual tokens are placed at 'front'" in other
    assert "PeftModel" not in other


def test_how_to_use_a_pair() -> None:
    pair = Task(problem_type="single_label_classification", labels=("no", "yes"), pair=True)
    card = model_card(an_adapter(task=pair), name="someone/same")
    assert 'classify = pipeline("someone/same")' in card
    assert 'classify({"text": "some text", "text_pair": "another"})' in card
    assert "a CSV file with the columns `text` and `text_b`:" in card
    assert "ptuning predict someone/same --input pairs.csv" in card
    columns = find_columns(["text", "text_b"], need_label=False)
    assert (columns.text, columns.text_b) == ("text", "text_b")  # found by these names, as the card says


@pytest.mark.parametrize("prompt", [{}, {"placement": "front"}, {"depth": "deep", "first_layer": 1}])
def test_examples_are_valid_python(prompt: dict[str, Any]) -> None:
    examples = re.findall(
        r"```python\n(.*?)```", model_card(an_adapter(prompt), name='it\'s "mine"'), re.DOTALL
    )
    assert examples
    for example in examples:
        compile(example, "README.md", "exec")


def test_no_placeholder_is_left() -> None:
    template = {"placement": "{prompt:4} {text_a}", "num_virtual_tokens": None}
    for prompt in (template, {}, {"depth": "deep", "first_layer": 1}):
        card = model_card(an_adapter(prompt, metrics=METRICS))
        assert not re.search(r"\{\{|\}\}|\[\]|TODO|More Information|<[a-z_ ]+>|\bNone\b", card)
    assert "in layers 1 and above" in card


@settings(deadline=None, max_examples=50)
@given(
    name=st.text(min_size=1),
    labels=st.lists(st.text(), min_size=2, max_size=3, unique=True),
    metric=st.text(),
)
def test_any_name_label_and_metric_leave_the_card_readable(name: str, labels: list[str], metric: str) -> None:
    task = Task(problem_type="single_label_classification", labels=tuple(labels))
    card = model_card(an_adapter(task=task, metrics={"test": {metric: 0.5}}), name=name)
    assert front_matter(card.encode("utf-8", "backslashreplace").decode()).library_name == "ptuning"
    assert len([line for line in card.splitlines() if line.startswith("## ")]) == 9


HOSTILE = (
    *(
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "![x](http://evil/x.png)",
        "[x](http://evil)",
    ),
    *(
        "a|b",
        "a\\|<img src=x>",
        "`<b>`",
        "``|`` <i>",
        "](http://evil)",
        "http://evil.example",
        "www.evil.example",
    ),
    *(
        "<http://evil>",
        "a@evil.example",
        "&lt;b&gt;",
        "*bold* _it_ ~~no~~",
        "# head",
        "---\nlicense: mit",
        "\\",
    ),
    *(
        "\x1b[31mred",
        "\x9b31m",
        "abc\u202etxt",
        "\u2066x",
        "a\u200bb",
        "\n\n<b>",
        "```\n<b>",
        "\ud800",
        "$x$",
    ),
)


def parsed(card: str) -> list[Any]:
    """Every token of the body, those in lines among them."""
    body = card.split("\n---\n", 1)[1]
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    return [each for token in tokens for each in (token, *(token.children or ()))]


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_foreign_words_are_inert_everywhere(data: st.DataObject) -> None:
    """Labels, names, metrics, splits, sources, licences and the baseline's sentence are text alone."""
    word = st.sampled_from(HOSTILE) | st.text("<>[]()!|`\\*_#&:/\n ax", min_size=1, max_size=12)

    def draw() -> str:
        return data.draw(word)

    labels = (draw() + "1", draw() + "2")
    adapter = an_adapter(
        {
            "placement": data.draw(
                st.sampled_from(["start", "front", "{prompt:2} <img src=x> {text_a} {prompt:2}"])
            )
        },
        facts={"name": draw(), "revision": draw()},
        task=Task(problem_type="single_label_classification", labels=labels),
        metrics={
            "test": {draw(): 0.5},
            draw(): {draw(): 2},
            "baseline": {"loss": 1.0},
            "baseline_rule": draw(),
        },
        extra={
            **{"license": draw(), "dataset": draw(), "fit": {draw(): draw()}, "rates": {draw(): [draw()]}},
            "data": {draw(): {"source": draw(), "rows": 3}, draw(): {"source": "split off", "rows": 1}},
        },
    )
    card = model_card(adapter, name=draw(), versions={draw(): draw()})
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ud800-\udfff]", card)
    assert front_matter(card).library_name == "ptuning"
    tokens = parsed(card)
    kinds = {token.type for token in tokens}
    assert not kinds & {"html_inline", "html_block", "image", "link_open", "em_open", "strong_open", "hr"}
    assert sum(token.type == "heading_open" for token in tokens) == 10
    text = " ".join(token.content for token in tokens if token.type == "text")
    assert not re.search(r"://|www\.|@", text)  # what GitHub makes a link of by itself


def test_plain_words_stay_plain() -> None:
    card = model_card(
        an_adapter(metrics={"test": {"f1_macro": 0.5}, "baseline": {}, "baseline_rule": "always 'delivery'"}),
        name="someone/refunds-2",
    )
    assert "# someone/refunds-2\n" in card
    assert "| f1_macro | 0.5000 |" in card
    assert "PEFT's P_TUNING" in card or "With PEFT" in card


def test_the_folder_holds_it(tmp_path: Path) -> None:
    folder = save(an_adapter(), tmp_path / "refunds")
    assert front_matter((folder / "README.md").read_text()).library_name == "ptuning"
    assert 'from_pretrained("refunds")' in (folder / "README.md").read_text()


def test_an_adapter_that_did_not_learn_says_so() -> None:
    assert "Do not use it" in model_card(an_adapter(extra={"learned": False}))
    assert "Do not use it" not in model_card(an_adapter(extra={"learned": True}))
    assert "Do not use it" in model_card(an_adapter(extra={"beats_baseline": False}))
    assert "Do not use it" not in model_card(an_adapter(extra={"beats_baseline": True}))
    assert "trained with PEFT" in model_card(an_adapter(extra={"imported": {"peft_type": "P_TUNING"}}))
