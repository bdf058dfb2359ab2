"""Backbones that are damaged or odd, or bring code: one sentence or a run; no traceback, none of their code."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ptuning.training.run import train
from torture.adapter import Evil
from torture.damage import changed
from torture.lab import OLD, Lab, copy, held, refused, state, tensors_of
from torture.trials import Draw, Line, Trial

Change = Callable[[Path], object]
MODEL = "model.safetensors"


def lines(lab: Lab, draw: Draw) -> Iterator[Line]:
    named = {**_configs(), **_tokenizers(), **_files(), **_code()}
    yield Line("odd folders", [Trial(name, _used(lab, change)) for name, change in named.items()])
    files = ("config.json", "tokenizer.json", "tokenizer_config.json", MODEL)
    trials = []
    for i in range(draw.count(120)):
        file = files[i % len(files)]
        data, what, size = changed((lab.backbone / file).read_bytes(), draw.random("bytes", i))
        trials.append(Trial(f"{file}: {what}", _used(lab, _write(file, data)), size))
    yield Line("bytes of its files", trials)


def _used(lab: Lab, change: Change) -> Callable[[Path], None]:
    """A run on a changed copy of the backbone ends with a sentence or an adapter."""

    def attempt(place: Path) -> None:
        folder = copy(lab.backbone, place / "backbone")
        change(folder)
        output = place / "out"
        config = lab.config(output, backbone=str(folder), fit=OLD)
        said = refused(lambda: train(config))
        held(not (place / "ran").exists(), "its code ran")
        held((state(output) == "absent") == bool(said), f"refused: {said}; and an adapter stands there")

    return attempt


def _write(file: str, data: bytes | str) -> Change:
    def change(folder: Path) -> None:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(data if isinstance(data, bytes) else data.encode())

    return change


def _with(file: str, values: Mapping[str, Any], *more: Change) -> Change:
    """Values set in one of its JSON files."""

    def change(folder: Path) -> None:
        found = json.loads((folder / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps({**found, **values}), encoding="utf-8")
        for each in more:
            each(folder)

    return change


def _configs() -> dict[str, Change]:
    odd: list[tuple[str, Any]] = [
        ("torch_dtype", "nonsense"),
        ("dtype", "os.system"),
        ("hidden_act", "__import__('os')"),
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
        ("architectures", ["../../evil"]),
        ("hidden_size", 31),
        ("hidden_size", "x"),
        ("hidden_size", None),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 10**6),
        ("num_attention_heads", 0),
        ("vocab_size", -1),
        ("vocab_size", 10**12),
        ("num_labels", 10**9),
        ("id2label", {str(i): "x" for i in range(5)}),
        ("id2label", [1, 2]),
        ("problem_type", "nonsense"),
        ("max_position_embeddings", 3),
        ("model_type", ["bert"]),
        ("model_type", "nonsense"),
        ("model_type", "t5"),
        ("transformers_weights", "../../../etc/passwd"),
        ("is_decoder", True),
        ("type_vocab_size", 0),
        ("pad_token_id", 10**6),
        ("base_model_tp_plan", {"a": "b"}),
        ("tie_word_embeddings", "x"),
        ("gradient_checkpointing", True),
        ("layer_norm_eps", "nan"),
        ("chunk_size_feed_forward", 3),
        ("position_embedding_type", "x"),
    ]
    return {
        f"config.json: {key} = {str(value)[:40]}": _with("config.json", {key: value}) for key, value in odd
    }


def _tokenizers() -> dict[str, Change]:
    odd: list[tuple[str, Any]] = [
        ("tokenizer_class", "os.system"),
        ("tokenizer_class", 5),
        ("model_max_length", "x"),
        ("model_max_length", -1),
        ("model_max_length", 3),
        ("pad_token", {"a": 1}),
        ("pad_token", 5),
        ("model_input_names", "x"),
        ("chat_template", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    ]
    file = "tokenizer_config.json"
    return {f"{file}: {key} = {str(value)[:30]}": _with(file, {key: value}) for key, value in odd}


def _files() -> dict[str, Change]:
    """Files that are cut, empty, gone, of another kind."""
    deep = b'{"a":' * 100_000
    whole = ("config.json", "tokenizer.json", "tokenizer_config.json", MODEL)
    cases: dict[str, Change] = {}
    for name in whole:
        cases |= {
            f"{name} cut in half": _half(name),
            f"{name} empty": _write(name, b""),
            f"{name} gone": _instead(name, lambda file: None),
            f"{name} a folder": _instead(name, lambda file: file.mkdir()),
            f"{name} a link to itself": _instead(name, lambda file: file.symlink_to(file)),
        }
    for name in (*whole[:3], "1_Pooling/config.json", "modules.json", "special_tokens_map.json"):
        for what, data in {
            "a list": b"[1]",
            "{}": b"{}",
            "null": b"null",
            "no UTF-8": b"\xff\xfe",
            "deep": deep,
        }.items():
            cases[f"{name} is {what}"] = _write(name, data)
    return {**cases, "tokenizer.json of an unknown model": _renamed}


def _renamed(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_bytes(file.read_bytes().replace(b'"WordLevel"', b'"WordLevem"'))


def _instead(name: str, make: Callable[[Path], object]) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def _half(name: str) -> Change:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return change


def _code() -> dict[str, Change]:
    """Modules, pickles and kernels, which nobody asked for."""
    module = _write(
        "evil.py",
        "import os\nos.mkdir('ran')\n"
        "from transformers import BertConfig as E, BertForSequenceClassification as M\n"
        "from transformers import BertTokenizerFast as T\n",
    )
    classes = {"AutoConfig": "evil.E", "AutoModelForSequenceClassification": "evil.M"}
    tokenizer = {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, "tokenizer_class": "EvilT"}

    def weights(data: bytes) -> Change:
        def change(folder: Path) -> None:
            (folder / MODEL).unlink()
            (folder / "pytorch_model.bin").write_bytes(data)

        return change

    packed = io.BytesIO()
    torch.save({"bert.x": Evil()}, packed)

    def honest(folder: Path) -> None:
        found = tensors_of(folder / MODEL)
        (folder / MODEL).unlink()
        torch.save(found, folder / "pytorch_model.bin")

    kernels = {
        f"{key} from the Hub": _with("config.json", {key: "kernels-community/flash-attn"})
        for key in ("_attn_implementation", "attn_implementation", "_attn_implementation_internal")
    }
    return {
        "config.json names code": _with("config.json", {"auto_map": classes}, module),
        "config.json of an unknown type names code": _with(
            "config.json", {"model_type": "evil", "auto_map": classes}, module
        ),
        "the tokenizer names code": _with("tokenizer_config.json", tokenizer, module),
        "weights that are a hostile pickle": weights(packed.getvalue()),
        "weights that are a bare pickle": weights(pickle.dumps(Evil())),
        "weights that are an honest pickle": honest,
        "a link to a folder above": lambda folder: os.symlink("..", folder / "more"),
        **kernels,
    }
