"""The twelve faults of PEFT's P-tuning and of ``transformers.Trainer``: ours is right, theirs is as we say.

Wherever it can be said so, one test runs the same steps on ptuning and on PEFT (``whose``) and asks for the
right answer from the one and for the fault from the other. So the comparison in README.md stays true: when
PEFT mends a fault, a test fails here and says which page to change. Without PEFT installed its halves are
skipped, and ours run.
"""

from __future__ import annotations

import copy
import errno
import importlib
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from ptuning import DeepPrompt, FitConfig, InputPrompt, Predictor, PTuningModel, Task, adapters, fit
from ptuning.errors import (
    AdapterError,
    AdapterMismatch,
    ConfigError,
    DataError,
    TrainingDiverged,
    UnsupportedBackbone,
)
from ptuning.model import ARCHITECTURES, MLPEncoder, PromptConfig
from ptuning.model.config import prompt_from_dict
from ptuning.training import checkpoint
from ptuning.training.interrupt import Interrupted
from test_training import StopAfter
from tiny import HIDDEN, PAD, VOCAB, ragged, tiny
from trainers import collate, examples, same


def installed(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


peft: Any = installed("peft")

MENDED = (
    f"PEFT {getattr(peft, '__version__', None)} has mended this, or changed it: update the comparison in "
    "README.md and docs/from-peft.md"
)
TRAINER_MENDED = (
    "transformers has mended this, or changed it: update the comparison in README.md and docs/from-peft.md"
)

P = 4  # virtual tokens everywhere here
DEEP, INPUT, DROP_IN, PEFT = "PTuningModel, deep", "PTuningModel, input", "ptuning.peft", "PEFT"
THEIRS = pytest.param(
    PEFT,
    marks=[
        pytest.mark.skipif(peft is None, reason="PEFT is not installed"),
        pytest.mark.filterwarnings("ignore"),  # what PEFT does is asserted, not what it says
    ],
)
everyone = pytest.mark.parametrize("whose", [DEEP, INPUT, DROP_IN, THEIRS])
with_adapters = pytest.mark.parametrize("whose", [DROP_IN, THEIRS])
"""Whoever has PEFT's own functions."""

Answers = Callable[[Any], Tensor]


# ---------------------------------------------------------------------------------------- helpers


def package(whose: str) -> Any:
    """PEFT, or ours under its names."""
    return peft if whose == PEFT else importlib.import_module("ptuning.peft")


def made(whose: str, base: PreTrainedModel, placement: str = "front") -> Any:
    """A task with P virtual tokens on ``base``, made by an encoder unless they are deep. PEFT: one place."""
    if whose == DEEP:
        return PTuningModel.from_backbone(base, DeepPrompt(num_virtual_tokens=P)).eval()
    if whose == INPUT:
        prompt = InputPrompt(num_virtual_tokens=P, placement=placement, encoder=MLPEncoder(width=8))
        return PTuningModel.from_backbone(base, prompt).eval()
    options = {"placement": placement} if whose == DROP_IN else {}
    return package(whose).get_peft_model(base, encoder_config(whose, **options)).eval()


def encoder_config(whose: str, **options: Any) -> Any:
    return package(whose).PromptEncoderConfig(
        task_type="SEQ_CLS", num_virtual_tokens=P, encoder_hidden_size=8, **options
    )


IDS, MASK = ragged([7, 4, 5])


@torch.no_grad()
def answers(model: nn.Module, ids: Tensor = IDS, mask: Tensor = MASK, **inputs: Any) -> Tensor:
    """``[B, C]``, without dropout; the model's mode is as before."""
    mode = model.training
    model.eval()
    logits: Tensor = model(input_ids=ids, attention_mask=mask, **inputs).logits
    model.train(mode)
    return logits


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@torch.no_grad()
def disturb(model: nn.Module) -> None:
    """Move every trained number, as training would."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter) * 0.3)


@contextmanager
def still_raises(kind: type[Exception], message: str) -> Iterator[None]:
    """The block raises what it did in the version that was compared with."""
    raised: Exception | None = None
    try:
        yield
    except Exception as error:
        raised = error
    assert type(raised) is kind, f"{MENDED}: it raised {raised!r}, not {kind.__name__}"
    assert re.search(message, str(raised)), f"{MENDED}: it raised {raised!r}"


def flip(file: Path, place: int | None = None) -> None:
    """Change one bit of a file, in the middle by default."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    file.write_bytes(content)


class Watch(TrainerCallback):
    """Keeps what ``look`` sees of the model where training begins and at every evaluation."""

    def __init__(self, look: Answers) -> None:
        self.look = look
        self.began: list[Tensor] = []
        self.evaluated: list[Tensor] = []

    def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
        self.began.append(self.look(model))

    def on_evaluate(self, *_: Any, model: Any, **__: Any) -> None:
        self.evaluated.append(self.look(model))


def trainer(folder: Path, model: Any, scores: Sequence[float] = (), **choices: Any) -> Trainer:
    """Twelve steps, saved at every fourth; ``scores`` are what the evaluations there are told to say."""
    coming = iter(scores)
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "learning_rate": 0.03,
        "per_device_train_batch_size": 8,
        "max_steps": 12,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_steps": 4,
        **choices,
    }
    if scores:
        arguments |= {
            "eval_strategy": "steps",
            "eval_steps": 4,
            "metric_for_best_model": "score",
            "greater_is_better": True,
        }
    torch.manual_seed(0)  # the rows of a resumed run are those of the run
    return Trainer(
        model=model,
        args=TrainingArguments(**arguments),
        train_dataset=examples(),
        eval_dataset=examples(8),
        data_collator=collate,
        compute_metrics=(lambda _: {"score": next(coming)}) if scores else None,
    )


def scripted(
    folder: Path, whose: str, scores: Sequence[float], look: Answers, **choices: Any
) -> tuple[Trainer, Watch]:
    run, watch = trainer(folder, made(whose, tiny("bert")), scores, **choices), Watch(look)
    run.add_callback(watch)
    return run, watch


def prompt_of(theirs: Any) -> Tensor:
    """What PEFT puts in front of the text, ``[P, H]``."""
    prompt: Tensor = theirs.get_prompt(batch_size=1)[0].detach().clone()
    return prompt


# ------------------------------------------------------------------------- 1 and 2: the own weights


@everyone
def test_fault_01_the_best_model_at_the_end_is_the_best(whose: str, tmp_path: Path) -> None:
    """With ``load_best_model_at_end`` PEFT loads what its encoder made into the encoder's input, and encodes
    it again: the model that is left is neither the best one nor any other that was evaluated."""
    run, watch = scripted(tmp_path, whose, [0.1, 0.9, 0.2], answers, load_best_model_at_end=True)
    if whose == PEFT:
        prompts = Watch(prompt_of)
        run.add_callback(prompts)
    run.train()
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-8")
    first, best, last = watch.evaluated
    assert min(apart(best, first), apart(best, last)) > 1e-3, "training changed nothing: this could not fail"
    if whose != PEFT:
        assert torch.equal(answers(run.model), best)
        return
    assert min(apart(answers(run.model), each) for each in watch.evaluated) > 1e-2, MENDED
    encoder, prompt = run.model.prompt_encoder["default"], prompts.evaluated[1]
    assert torch.equal(encoder.embedding.weight, prompt), MENDED
    assert torch.equal(prompt_of(run.model), encoder.mlp_head(prompt)), MENDED


@everyone
def test_fault_01_a_resumed_run_begins_where_it_stopped(whose: str, tmp_path: Path) -> None:
    """``resume_from_checkpoint`` does the same, and the encoder that it goes through is a fresh one: PEFT's
    checkpoints do not hold it. The optimizer's moments then meet other numbers than those they are of."""
    straight, then = scripted(tmp_path / "straight", whose, [0.1, 0.2, 0.3], answers)
    straight.train()
    resumed, now = scripted(tmp_path / "resumed", whose, [0.3], answers)
    fresh = answers(resumed.model)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-8"))
    if whose != PEFT:
        assert apart(fresh, then.evaluated[1]) > 1e-3, "training changed nothing: this could not fail"
        assert torch.equal(now.began[0], then.evaluated[1])
        assert torch.equal(answers(resumed.model), answers(straight.model))
        return
    assert apart(now.began[0], then.evaluated[1]) > 1e-2, MENDED
    saved = load_file(tmp_path / "straight" / "checkpoint-8" / "adapter_model.safetensors")
    assert set(saved) == {
        "prompt_embeddings",
        "base_model.classifier.weight",
        "base_model.classifier.bias",
    }, MENDED


@everyone
def test_fault_02_a_models_own_state_leaves_its_logits_alone(whose: str) -> None:
    """``set_peft_model_state_dict(m, get_peft_model_state_dict(m))`` changes what ``m`` answers, because the
    state is the encoder's output and is loaded into its input."""
    model = made(whose, tiny("bert"))

    def state() -> dict[str, Tensor]:
        if whose in (DEEP, INPUT):
            return copy.deepcopy(dict(model.state_dict()))
        return copy.deepcopy(package(whose).get_peft_model_state_dict(model))

    def put_back(values: dict[str, Tensor]) -> None:
        if whose in (DEEP, INPUT):
            model.load_state_dict(values)
        else:
            package(whose).set_peft_model_state_dict(model, values)

    before, kept = answers(model), state()
    put_back(kept)
    if whose == PEFT:
        assert apart(answers(model), before) > 1e-2, MENDED
        return
    assert torch.equal(answers(model), before)
    disturb(model)
    assert apart(answers(model), before) > 1e-2
    put_back(kept)
    assert torch.equal(answers(model), before)


# -------------------------------------------------------------- 3, 4 and 5: where the tokens stand


@everyone
def test_fault_03_the_pooled_token_is_cls(whose: str) -> None:
    """BERT's pooler reads the first place. PEFT puts the prompt there, so that the head is trained on a
    virtual token, not on the ``[CLS]`` that the pooler was pretrained with."""
    base: Any = tiny("bert")
    words = base.get_input_embeddings()
    seen: dict[str, Tensor] = {}

    def entered(_: nn.Module, __: Any, inputs: dict[str, Any]) -> None:
        given = inputs.get("inputs_embeds")
        seen["entered"] = words(inputs["input_ids"]) if given is None else given

    def pooled(_: nn.Module, inputs: tuple[Tensor]) -> None:
        seen["pooled"] = inputs[0]

    def left(_: nn.Module, __: Any, output: Any) -> None:
        seen["left"] = output.last_hidden_state

    base.bert.embeddings.register_forward_pre_hook(entered, with_kwargs=True)
    base.bert.encoder.register_forward_hook(left)
    base.bert.pooler.dense.register_forward_pre_hook(pooled)
    model = made(whose, base)
    answers(model)
    for row in range(len(IDS)):
        places = [t for t, each in enumerate(seen["left"][row]) if torch.equal(each, seen["pooled"][row])]
        assert len(places) == 1
        token = seen["entered"][row, places[0]]
        if whose == PEFT:
            assert torch.equal(token, prompt_of(model)[0]), MENDED
        else:
            assert torch.equal(token, words(IDS[row, 0]))


@everyone
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_fault_04_the_padding_of_a_decoders_batch_changes_no_answer(whose: str, kind: str) -> None:
    """With right padding PEFT pools the pad. With left padding the pads stand between prompt and text, which
    moves the text's positions, and the ``position_ids`` that would mend it are dropped."""
    model, lengths = made(whose, tiny(kind)), [7, 4]
    (ids, mask), (left_ids, left_mask) = ragged(lengths), ragged(lengths, left=True)
    assert torch.equal(ids[1, :4], left_ids[1, 3:]), "the same texts"
    alone = torch.cat(
        [answers(model, ids[n : n + 1, :size], mask[n : n + 1, :size]) for n, size in enumerate(lengths)]
    )
    other_pads = torch.where(mask.bool(), ids, 50)
    right, left = answers(model, ids, mask), answers(model, left_ids, left_mask)
    if whose != PEFT:
        assert apart(right, alone) < 1e-5
        assert apart(left, alone) < 1e-5
        assert torch.equal(answers(model, other_pads, mask), right)
        return
    assert apart(right[0], alone[0]) < 1e-5, "the longest row has no padding"
    assert apart(right[1], alone[1]) > 0.1, MENDED
    assert apart(answers(model, other_pads, mask)[1], right[1]) > 0.1, f"a pad is pooled: {MENDED}"
    assert apart(left[1], alone[1]) > 0.1, MENDED
    positions = (left_mask.cumsum(1) - 1).clamp(min=0)
    with pytest.warns(UserWarning, match="Position ids are not supported"):
        told = answers(model, left_ids, left_mask, position_ids=positions)
    assert torch.equal(told, left), f"positions are dropped: {MENDED}"


PAST_THE_LIMIT: dict[str, tuple[type[Exception], str] | None] = {
    "bert": (RuntimeError, r"must match the existing size \(64\)"),
    "roberta": (RuntimeError, "index 64 is out of bounds"),
    "gpt2": (IndexError, "index out of range in self"),
    "deberta-v2": None,
    "modernbert": None,
    "llama": None,
}
"""What PEFT makes of too long a row by architecture: torch's error, or an answer."""


@everyone
@pytest.mark.parametrize("kind", PAST_THE_LIMIT)
def test_fault_05_a_text_that_leaves_no_room_for_the_prompt_is_refused(whose: str, kind: str) -> None:
    """Text and prompt together beyond the position limit: PEFT leaves it to an index error deep in the
    model, and where positions are relative it answers as if nothing were wrong."""
    model = made(whose, tiny(kind))
    limit = 62 if kind == "roberta" else 64  # RoBERTa's positions begin behind the pad's
    if not (whose == DEEP and kind in adapters.NO_CACHE):  # deep there, the text's positions stay as they are
        limit -= P
    fits, too_long = ragged([limit, 3]), ragged([3, limit + 1])
    assert bool(answers(model, *fits).isfinite().all())
    if whose != PEFT:
        with pytest.raises(
            DataError,
            match=rf"row 1 of the batch: got {limit + 1} tokens, expected at most {limit}: .*truncate",
        ):
            answers(model, *too_long)
    elif (raised := PAST_THE_LIMIT[kind]) is not None:
        with still_raises(*raised):
            answers(model, *too_long)
    else:
        assert answers(model, *too_long).shape == (2, 3), MENDED


# ------------------------------------------------------------------------ 6 and 7: which adapter


@everyone
def test_fault_06_the_prompt_can_be_switched_off(whose: str) -> None:
    """``disable_adapter()`` raises ``UnboundLocalError`` for sequence classification: it keeps a method that
    only generating models have."""
    plain = tiny("bert")
    expected = answers(plain)
    model = made(whose, copy.deepcopy(plain))
    disturb(model)
    before = answers(model)
    assert apart(before, expected) > 1e-2
    if whose == PEFT:
        with still_raises(UnboundLocalError, "old_prepare_inputs_for_generation"), model.disable_adapter():
            answers(model)
        return
    with model.disabled() if whose in (DEEP, INPUT) else model.disable_adapter():
        assert apart(answers(model), expected) < 1e-5
    assert torch.equal(answers(model), before), "the prompt is back"


def test_fault_07_each_row_has_its_own_prompt() -> None:
    """One batch, several tasks: with ``prompt=``, one a row, each row is answered as by the task that its
    prompt is of. (PEFT's way of saying it, ``adapter_names``, is the next test.)"""
    first = made(INPUT, tiny("bert"))
    others = [PTuningModel.from_backbone(first.backbone, first.prompt_config) for _ in range(2)]
    for model in others:
        model.head.load_state_dict(first.head.state_dict())
        with torch.no_grad():
            for parameter in model.prompt_encoder.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.5)
    tasks = [first, *others]
    prompts = torch.stack([model.prompt_encoder() for model in tasks])
    alone = torch.stack([answers(model.eval())[row] for row, model in enumerate(tasks)])
    assert apart(answers(first)[1:], alone[1:]) > 1e-2, "the prompts differ"
    assert apart(answers(first, prompt=prompts), alone) < 1e-5


@with_adapters
def test_fault_07_each_row_has_its_own_adapter(whose: str) -> None:
    """``adapter_names``, one a row, is ignored: the whole batch goes through the active adapter, and even a
    name that no adapter has is taken."""
    model = made(whose, tiny("bert"))
    model.add_adapter("other", encoder_config(whose))
    for name in ("other", "default"):
        model.set_adapter(name)
        disturb(model)
    alone = {}
    for name in ("other", "default"):
        model.set_adapter(name)
        alone[name] = answers(model)
    assert apart(alone["default"], alone["other"]) > 1e-2
    if whose == PEFT:
        mixed = answers(model, adapter_names=["default", "other", "__base__"])
        assert torch.equal(mixed, alone["default"]), MENDED
        assert torch.equal(answers(model, adapter_names=["nobody"] * 3), alone["default"]), MENDED
        return
    alone["__base__"] = answers(tiny("bert"))
    for names in (["default", "other", "__base__"], ["__base__", "default", "other"], ["other"] * 3):
        expected = torch.stack([alone[name][row] for row, name in enumerate(names)])
        assert apart(answers(model, adapter_names=names), expected) < 1e-5
    with pytest.raises(ConfigError, match=r"nobody.*(default|other)"):
        answers(model, adapter_names=["nobody"] * 3)


# -------------------------------------------------------------------------- 8 and 9: architectures


@everyone
def test_fault_08_debertas_pooler_is_trained_and_saved(whose: str, tmp_path: Path) -> None:
    """DeBERTa's checkpoints hold no pooler, so each load draws one at random. PEFT freezes it as it was drawn
    and does not save it: the model that was trained is never had again."""
    model = made(whose, tiny("deberta-v2"))
    trained = {name for name, value in model.named_parameters() if value.requires_grad and "pooler" in name}
    before = {name: model.get_parameter(name).detach().clone() for name in trained}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(input_ids=IDS, attention_mask=MASK, labels=torch.tensor([0, 1, 2])).loss.backward()
    optimizer.step()
    expected = answers(model)
    model.save_pretrained(tmp_path / "adapter")

    reloaded: Any = tiny("deberta-v2")
    with torch.no_grad():
        reloaded.pooler.dense.weight.copy_(torch.randn_like(reloaded.pooler.dense.weight) * 0.2)
    if whose in (DEEP, INPUT):
        again = PTuningModel.from_pretrained(tmp_path / "adapter", backbone=reloaded).eval()
    else:
        again = package(whose).PeftModel.from_pretrained(reloaded, str(tmp_path / "adapter")).eval()
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    if whose == PEFT:
        assert not trained, MENDED
        assert not [name for name in saved if "pooler" in name], MENDED
        assert apart(answers(again), expected) > 1e-2, MENDED
        return
    assert len(trained) == 2, "weight and bias"
    assert all(not torch.equal(model.get_parameter(name), value) for name, value in before.items())
    assert {"base_model.pooler.dense.weight", "base_model.pooler.dense.bias"} <= set(saved)
    assert apart(answers(again), expected) < 1e-6


def unsupported(kind: str) -> PreTrainedModel:
    """A tiny random model of an architecture that ptuning refuses."""
    sizes: dict[str, dict[str, Any]] = {
        "xlnet": {"n_layer": 2, "n_head": 4, "d_inner": 48},
        "bart": {
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": 64,
        },
        "t5": {"d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": PAD},
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=VOCAB, d_model=HIDDEN, pad_token_id=PAD, eos_token_id=2, num_labels=3, **sizes[kind]
    )
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    return model.eval()


HEADS = {
    "xlnet": ("sequence_summary.summary", "logits_proj"),
    "bart": ("classification_head.dense", "classification_head.out_proj"),
    "t5": ("classification_head.dense", "classification_head.out_proj"),
}


@everyone
@pytest.mark.parametrize("kind", HEADS)
def test_fault_08_a_head_that_is_not_known_is_not_left_at_random(whose: str, kind: str) -> None:
    """The heads of XLNet, BART and T5 have other names than ``classifier`` and ``score``: PEFT leaves them
    frozen as they were drawn and does not save them. ptuning refuses what it does not know at once."""
    base = unsupported(kind)
    head = [f"{layer}.{name}" for layer in HEADS[kind] for name in ("weight", "bias")]
    assert all(base.get_parameter(name).requires_grad for name in head)
    if whose != PEFT:
        assert kind not in ARCHITECTURES
        with pytest.raises(
            UnsupportedBackbone,
            match=rf"'{kind}' .* not supported: got .*, expected one of \d+ architectures",
        ):
            made(whose, base)
        assert all(value.requires_grad for value in base.parameters()), "left as it was"
        return
    model = made(whose, base)
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert all(name.startswith("prompt_encoder.") for name in trained), MENDED
    assert not any(base.get_parameter(name).requires_grad for name in head), MENDED
    assert list(peft.get_peft_model_state_dict(model)) == ["prompt_embeddings"], MENDED


OUTRIGHT = {
    "albert": (RuntimeError, "Expected size 32 but got size 20"),
    "electra": (RuntimeError, "Expected size 32 but got size 20"),
    "distilbert": (ValueError, "Please specify `token_dim` in `peft_config`"),
}


@everyone
@pytest.mark.parametrize("kind", OUTRIGHT)
def test_fault_09_embeddings_narrower_than_the_model_work(whose: str, kind: str) -> None:
    """The prompt of ALBERT and ELECTRA is as wide as their embeddings; PEFT makes it as wide as the layers
    and fails in the first batch. On DistilBERT it does not find the width at all."""
    base = tiny(kind)
    plain = copy.deepcopy(base)
    if whose == PEFT:
        with still_raises(*OUTRIGHT[kind]):
            answers(made(whose, base))
        return
    model = made(whose, base, placement="start")
    if whose == INPUT:
        prompt = model.prompt_encoder().detach()
        embeddings = torch.cat((prompt.expand(3, -1, -1), plain.get_input_embeddings()(IDS)), dim=1)
        mask = torch.cat((MASK.new_ones(3, P), MASK), dim=1)
        with torch.no_grad():
            expected = plain(inputs_embeds=embeddings, attention_mask=mask).logits
        assert apart(answers(model), expected) < 1e-5
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    optimizer = torch.optim.Adam(trained.values(), lr=1e-3)
    for _ in range(
        2
    ):  # the drop-in's encoder begins with a last layer of nought, which lets nothing behind it
        optimizer.zero_grad()
        model(input_ids=IDS, attention_mask=MASK, labels=torch.tensor([0, 1, 2])).loss.backward()
        optimizer.step()
    gradients = {name: value.grad for name, value in trained.items()}
    assert any("prompt" in name for name in gradients)
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert bool(gradient.isfinite().all()), name
        assert float(gradient.abs().max()) > 0, name


@everyone
@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_fault_09_an_encoder_decoder_is_refused_where_the_task_is_made(whose: str, kind: str) -> None:
    """PEFT takes BART and T5, prints its line of trainable parameters, and fails in the first batch: their
    classifiers take no embeddings. ptuning says so at once, and what it does support."""
    base = unsupported(kind)
    if whose != PEFT:
        with pytest.raises(UnsupportedBackbone, match=rf"'{kind}' .* expected one of \d+ architectures"):
            made(whose, base)
        return
    model = made(whose, base)
    with still_raises(NotImplementedError, "Passing input embeddings is currently not supported"):
        answers(model)


# ------------------------------------------------------------------------ 10 and 11: what is saved

NAMED = Task(problem_type="single_label_classification", labels=("no", "yes"), max_length=20)


def elsewhere(folder: Path, tmp_path: Path) -> Path:
    """A copy of a backbone's folder with other weights of the same shapes."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


@pytest.mark.parametrize("prompt", [DeepPrompt(num_virtual_tokens=P), InputPrompt(num_virtual_tokens=P)])
def test_fault_10_the_adapter_knows_its_task_and_its_backbone(
    prompt: PromptConfig, tiny_folder: Path, tmp_path: Path
) -> None:
    """Labels, the maximum length, which backbone and with it which tokenizer: the folder says it all, and a
    backbone of the same shape with other weights is refused."""
    model = PTuningModel.from_backbone(str(tiny_folder), prompt, task=NAMED).eval()
    disturb(model)
    texts = ["the good film", "a bad bill was late", "crash"]
    expected = Predictor(model=model)(texts)
    assert {found.label for found in expected} <= {"no", "yes"}
    model.save_pretrained(tmp_path / "adapter")

    loaded = PTuningModel.from_pretrained(tmp_path / "adapter").eval()
    assert loaded.task == NAMED
    assert Predictor(model=loaded)(texts) == expected
    assert loaded.tokenizer is not None
    assert loaded.tokenizer(texts)["input_ids"] == model.tokenizer(texts)["input_ids"]  # type: ignore[misc]
    limit = loaded.max_text_tokens
    assert limit == 20 - loaded.inserted_tokens
    with pytest.raises(DataError, match=rf"{limit + 1} tokens, expected at most {limit}.*the task 20"):
        answers(loaded, *ragged([limit + 1]))

    other = elsewhere(tiny_folder, tmp_path)
    for backbone in (str(other), AutoModelForSequenceClassification.from_pretrained(other)):
        with pytest.raises(AdapterMismatch, match=r"same shape but other weights.*use the original backbone"):
            PTuningModel.from_pretrained(tmp_path / "adapter", backbone=backbone)


@pytest.mark.skipif(peft is None, reason="PEFT is not installed")
@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_fault_10_pefts_adapter_knows_neither(tiny_folder: Path, tmp_path: Path) -> None:
    """PEFT keeps the backbone's name and no more: the labels are gone, and an adapter on the wrong backbone
    answers without a word."""
    base = AutoModelForSequenceClassification.from_pretrained(
        tiny_folder, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1}
    )
    model = made(PEFT, base)
    disturb(model)
    ids = IDS % 40  # words of that backbone
    expected = answers(model, ids)
    model.save_pretrained(str(tmp_path / "adapter"))
    files = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert files == {"README.md", "adapter_config.json", "adapter_model.safetensors"}, MENDED
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    told = [key for key in config if re.search("label|length|tokenizer|sha|hash|digest|fingerprint", key)]
    assert not told, MENDED

    def on(folder: Path) -> Any:
        return peft.PeftModel.from_pretrained(
            AutoModelForSequenceClassification.from_pretrained(folder), str(tmp_path / "adapter")
        )

    right = on(tiny_folder)
    assert right.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}, MENDED
    assert apart(answers(right, ids), expected) < 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # not even a warning
        wrong = on(elsewhere(tiny_folder, tmp_path))
    assert apart(answers(wrong, ids), expected) > 1e-1, MENDED


@with_adapters
def test_fault_11_modules_to_save_stays_as_long_as_it_is(whose: str, tmp_path: Path) -> None:
    """Every save and reload by PEFT adds the names of the head to ``modules_to_save`` again; before the first
    it has done so twice. Ours names what PEFT has to be told of, DeBERTa's pooler, and that once."""
    model, lengths = made(whose, tiny("deberta-v2"), placement="start"), []
    for turn in range(3):
        folder = tmp_path / str(turn)
        model.save_pretrained(str(folder))
        config = json.loads((folder / "adapter_config.json").read_text())
        lengths.append(len(config["modules_to_save"]))
        model = package(whose).PeftModel.from_pretrained(tiny("deberta-v2"), str(folder))
    if whose == PEFT:
        assert lengths == [4, 8, 12], MENDED
    else:
        assert lengths == [1, 1, 1]


def test_fault_11_our_adapter_is_the_same_however_often_it_is_saved(tmp_path: Path) -> None:
    """The same of ``PTuningModel``, for the whole of the file."""
    prompt = InputPrompt(num_virtual_tokens=P, placement="start")
    model, configs = PTuningModel.from_backbone(tiny("deberta-v2"), prompt), []
    for turn in range(3):
        model.save_pretrained(tmp_path / str(turn))
        configs.append(json.loads((tmp_path / str(turn) / "adapter_config.json").read_text()))
        model = PTuningModel.from_pretrained(tmp_path / str(turn), backbone=tiny("deberta-v2"))
    assert configs[0]["modules_to_save"] == ["pooler"]
    assert configs[0] == configs[1] == configs[2]


UNKNOWN = {
    "peft_type": "P_TUNING",
    "task_type": "SEQ_CLS",
    "num_virtual_tokens": P,
    "encoder_hiden_size": 8,  # one d too few
}


@with_adapters
def test_fault_11_an_unknown_key_of_a_configuration_is_refused(whose: str, tmp_path: Path) -> None:
    """A key that PEFT does not know, a misspelt one say, is dropped from a file with a warning that speaks of
    a newer version; the default is taken in its place."""
    (tmp_path / "adapter_config.json").write_text(json.dumps(UNKNOWN))
    if whose == PEFT:
        with pytest.warns(
            UserWarning, match=r"Unexpected keyword arguments \['encoder_hiden_size'\].*ignored"
        ):
            config = peft.PeftConfig.from_pretrained(str(tmp_path))
        assert type(config) is peft.PromptEncoderConfig, MENDED
        assert config.encoder_hidden_size is None, MENDED
        assert not hasattr(config, "encoder_hiden_size"), MENDED
        return
    ours = package(whose)
    nearest = r"encoder_hiden_size.*encoder_hidden_size"
    with pytest.raises(
        AdapterError, match=r"adapter_config.json.*encoder_hiden_size.*P_TUNING.*'encoder_hidden_size'"
    ):
        ours.PeftConfig.from_pretrained(str(tmp_path))
    with pytest.raises(ConfigError, match=nearest):
        ours.get_peft_config(dict(UNKNOWN))
    with pytest.raises((ConfigError, TypeError), match="encoder_hiden_size"):
        encoder_config(whose, encoder_hiden_size=8)


def test_fault_11_an_unknown_option_of_ours_is_refused() -> None:
    """The same of ptuning's own configurations, wherever they come from."""
    for values in ({"num_virtual_token": 4}, {"encoder": {"kind": "mlp", "hiden": 8}}):
        with pytest.raises(ConfigError, match=r"(num_virtual_token|hiden): unknown option"):
            prompt_from_dict({"depth": "input", **values})


# ----------------------------------------------------------------------- 12: transformers' Trainer


TASK = Task(problem_type="single_label_classification", labels=("negative", "positive"))
Rows = Callable[..., list[dict[str, Any]]]


def fitted(
    backbone: Path,
    rows: list[dict[str, Any]],
    output: Path,
    *,
    run: dict[str, Any] | None = None,
    **fits: Any,
) -> PTuningModel:
    torch.manual_seed(0)
    model = PTuningModel.from_backbone(str(backbone), DeepPrompt(num_virtual_tokens=P), task=TASK)
    config = FitConfig(**{"epochs": 3, "batch_size": 8, "prompt_rate": 3e-2, "head_rate": 3e-2, **fits})
    fit(
        model,
        {"train": rows[:32], "validation": rows[32:]},
        config,
        report=False,
        output=output,
        **(run or {}),
    )
    return model


def tensors_below(folder: Path) -> dict[str, Tensor]:
    return {
        f"{file.name}: {name}": value
        for file in folder.rglob("*.safetensors")
        for name, value in load_file(file).items()
    }


def test_fault_12_a_loss_that_is_not_a_number_stops_the_run(
    tiny_folder: Path, rows: Rows, tmp_path: Path
) -> None:
    """A far too high rate makes the loss NaN in the second step. The Trainer logs it as 0.0, goes on to the
    end and saves a model of NaN. ``fit`` raises in that step, and nothing is saved."""
    plain = trainer(tmp_path / "plain", tiny("bert"), learning_rate=1e30)
    plain.train()
    losses = [entry["loss"] for entry in plain.state.log_history if "loss" in entry]
    assert losses[0] > 0.1
    assert losses[1:] == [0.0] * 11, TRAINER_MENDED
    weights = load_file(tmp_path / "plain" / "checkpoint-12" / "model.safetensors")
    assert all(bool(value.isnan().any()) for value in weights.values()), TRAINER_MENDED

    far = {"prompt_rate": 1e30, "head_rate": 1e30, "warmup": 0.0}
    with pytest.raises(TrainingDiverged, match=r"diverged at step \d of 12: got loss .*(nan|inf).*lower"):
        fitted(tiny_folder, rows(40), tmp_path / "fit", **far)
    with pytest.raises(TrainingDiverged, match=r"logits of \d+ of \d+ rows are not finite.*lower"):
        fitted(tiny_folder, rows(40), tmp_path / "fit", **far, evaluate_every=1)
    assert not (tmp_path / "fit").exists(), "no adapter"
    assert not list((tmp_path / "fit.run").rglob("*.safetensors")), "and no checkpoint"


@pytest.mark.parametrize("whose", [DEEP, INPUT, DROP_IN])
def test_fault_12_our_model_stops_the_trainer_where_its_loss_is_not_a_number(
    whose: str, tmp_path: Path
) -> None:
    """The Trainer would not look, so the model does."""
    run = trainer(tmp_path, made(whose, tiny("bert")), learning_rate=1e30, save_steps=1)
    with pytest.raises(TrainingDiverged, match=r"the loss: got (nan|inf).*learning rate"):
        run.train()
    assert run.state.global_step < 4
    assert all(bool(value.isfinite().all()) for value in tensors_below(tmp_path).values())


def pickles_in(folder: Path) -> set[str]:
    """Files that have to be unpickled to be read: torch's archives, and bare pickles."""
    found = set()
    for file in folder.rglob("*"):
        if file.is_file() and zipfile.is_zipfile(file):
            if any(name.endswith(".pkl") for name in zipfile.ZipFile(file).namelist()):
                found.add(file.name)
        elif file.is_file() and file.read_bytes()[:1] == b"\x80":  # the first opcode of a bare pickle
            found.add(file.name)
    return found


def test_fault_12_a_checkpoint_holds_no_pickle(tiny_folder: Path, rows: Rows, tmp_path: Path) -> None:
    """Unpickling runs whatever code the file names. The Trainer's checkpoints hold four pickles; ours hold
    safetensors and JSON."""
    trainer(tmp_path / "plain", tiny("bert")).train()
    assert pickles_in(tmp_path / "plain" / "checkpoint-4") == {
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
    }, TRAINER_MENDED

    fitted(tiny_folder, rows(40), tmp_path / "fit")
    checkpoint = tmp_path / "fit.run" / "checkpoint"
    assert {file.name for file in (checkpoint / "resume").iterdir()} == {"state.json", "state.safetensors"}
    assert not pickles_in(checkpoint)
    assert {file.suffix for file in checkpoint.rglob("*") if file.is_file()} == {
        ".json",
        ".safetensors",
        ".md",
    }


def test_fault_12_a_checkpoint_is_written_whole_or_not_at_all(
    tiny_folder: Path, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up while the second checkpoint is written. The Trainer leaves a part of it under the
    name of a checkpoint, and takes it for the last one; ours leaves the first whole, to resume from."""
    full = OSError(errno.ENOSPC, "No space left on device")
    real_save = torch.save

    def failing_save(content: Any, file: Any, *given: Any, **named: Any) -> None:
        if Path(file).parts[-2:] == ("checkpoint-8", "optimizer.pt"):
            raise full
        real_save(content, file, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", failing_save)
        with pytest.raises(OSError, match="No space left"):
            trainer(tmp_path / "plain", tiny("bert")).train()
    half = tmp_path / "plain" / "checkpoint-8"
    assert (half / "model.safetensors").is_file(), TRAINER_MENDED
    assert not (half / "trainer_state.json").exists(), TRAINER_MENDED
    assert get_last_checkpoint(str(tmp_path / "plain")) == str(half), TRAINER_MENDED

    real_save_file, calls = checkpoint.save_file, []

    def failing_save_file(tensors: dict[str, Tensor], file: Path) -> None:
        calls.append(file)
        if len(calls) == 2:
            file.write_bytes(b"half a fi")
            raise full
        real_save_file(tensors, file)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", failing_save_file)
        with pytest.raises(OSError, match="No space left"):
            fitted(tiny_folder, rows(40), tmp_path / "fit")
    assert len(calls) == 2
    run = tmp_path / "fit.run"
    adapters.verify(run / "checkpoint")
    assert list(run.rglob("state.safetensors")) == [run / "checkpoint" / "resume" / "state.safetensors"], (
        "and no half-written folder beside it"
    )
    resumed = fitted(tiny_folder, rows(40), tmp_path / "fit", run={"resume": True})
    straight = fitted(tiny_folder, rows(40), tmp_path / "straight")
    assert same(dict(resumed.state_dict()), dict(straight.state_dict()))


def test_fault_12_a_flipped_bit_is_found_on_resume(tiny_folder: Path, rows: Rows, tmp_path: Path) -> None:
    """One bit of a checkpoint's weights is flipped. The Trainer trains on from the altered number; ``fit``
    refuses to resume, and names the file."""
    trainer(tmp_path / "plain", tiny("bert")).train()
    file = tmp_path / "plain" / "checkpoint-8" / "model.safetensors"
    whole = load_bytes(file.read_bytes())
    flip(file)
    altered = load_bytes(file.read_bytes())
    assert sum(not torch.equal(whole[name], altered[name]) for name in whole) == 1

    watch = Watch(lambda model: torch.cat([model.get_parameter(name).detach().flatten() for name in altered]))
    plain = trainer(tmp_path / "resumed", tiny("bert"))
    plain.add_callback(watch)
    plain.train(resume_from_checkpoint=str(file.parent))
    assert torch.equal(watch.began[0], torch.cat([value.flatten() for value in altered.values()])), (
        TRAINER_MENDED
    )

    with pytest.raises(Interrupted):
        fitted(tiny_folder, rows(40), tmp_path / "fit", run={"callbacks": [StopAfter(5)]})
    for name in ("adapter_model.safetensors", "resume/state.safetensors", "resume/state.json"):
        file = tmp_path / "fit.run" / "checkpoint" / name
        before = file.read_bytes()
        flip(file)
        with pytest.raises(AdapterError, match=file.name):
            fitted(tiny_folder, rows(40), tmp_path / "fit", run={"resume": True})
        file.write_bytes(before)
    assert fitted(tiny_folder, rows(40), tmp_path / "fit", run={"resume": True}), "whole, it is resumed"


@pytest.mark.parametrize("whose", [DEEP, INPUT, DROP_IN])
def test_fault_12_a_flipped_bit_is_found_in_the_trainers_file_too(whose: str, tmp_path: Path) -> None:
    """The Trainer writes our model's ``state_dict`` without a digest, so the state brings its own: a flipped
    bit of any tensor is found by whoever loads it, the Trainer first of all."""
    trainer(tmp_path / "run", made(whose, tiny("bert"))).train()
    file = tmp_path / "run" / "checkpoint-8" / "model.safetensors"
    content = file.read_bytes()
    fresh = made(whose, tiny("bert"))
    fresh.load_state_dict(load_bytes(content), strict=False)  # as it was written it is taken
    names = [name for name in load_bytes(content) if not name.endswith("_extra_state")]
    assert any("prompt" in name for name in names)
    assert not any("attention" in name for name in names), "the task alone, without the backbone"
    for name in names:
        altered = load_bytes(content)
        altered[name].view(torch.uint8).view(-1)[0] ^= 1
        with pytest.raises(AdapterError, match="altered or cut short"):
            fresh.load_state_dict(altered, strict=False)

    start, end = _place(content, next(name for name in names if "prompt" in name))
    flip(file, (start + end) // 2)
    with pytest.raises(AdapterError, match="altered or cut short"):
        trainer(tmp_path / "again", made(whose, tiny("bert"))).train(resume_from_checkpoint=str(file.parent))


def _place(content: bytes, name: str) -> tuple[int, int]:
    """Where a tensor's bytes stand in a safetensors file: 8 bytes of length, a JSON header, the data."""
    size = int.from_bytes(content[:8], "little")
    start, end = json.loads(content[8 : 8 + size])[name]["data_offsets"]
    return 8 + size + start, 8 + size + end


# ----------------------------------------------------------------------- beyond the twelve: precision


@with_adapters
def test_half_precision_is_the_backbones_alone(whose: str) -> None:
    """With the reference the head that is being learned is rounded as well."""
    model = made(whose, tiny("bert")).half()
    learned = {value.dtype for value in model.parameters() if value.requires_grad}
    if whose == PEFT:
        assert learned == {torch.float16}, MENDED
    else:
        assert learned == {torch.float32}
        assert {value.dtype for value in model.backbone.parameters()} == {torch.float16}
