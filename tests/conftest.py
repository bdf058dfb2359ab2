"""Fixtures that every test may use: one seed, a tiny backbone on disk with a tokenizer, tiny tasks."""

from __future__ import annotations

import gc
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hub_server import SERVER, Hub, Server, User
from warm import Programs

os.environ["HF_ENDPOINT"] = SERVER.url  # the client reads it once, when it is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: no test may reach out
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start, too

import torch

torch.set_num_threads(
    1
)  # tiny models: a second thread costs more than it brings, and tests may run side by side

WORDS = [
    *("the", "a", "of", "to", "and", "in", "it", "is", "was", "parcel", "bill", "crash", "late", "wrong"),
    *("good", "bad", "great", "awful", "film", "food", "very", "not", "slow", "fast", "kind", "rude"),
    *("cheap", "dear", "happy", "sad", "one", "two", "three", "four", "five", "red", "blue", "green"),
    *("page", "app", "shop", "card", "door"),
]


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test writes to the user's own cache; processes that tests start inherit this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTUNING_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def programs() -> Iterator[Programs]:
    """Starts programs that need torch in processes of their own, in a tenth of a second."""
    made = Programs()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The real data sets; the test is skipped, saying so, where they are not."""
    root = os.environ.get("PTUNING_DATA")
    if not root or not Path(root, "mrpc", "train.jsonl").is_file():
        pytest.skip(
            "the real data sets are not here: set PTUNING_DATA to a folder with mrpc/, sst2/ and stsb/"
        )
    return Path(root)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny BERT with a word-level tokenizer, as a model folder."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from tiny import tiny

    folder = tmp_path_factory.mktemp("backbone") / "tiny-bert"
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    tokenizer.save_pretrained(folder)
    model = tiny("bert", num_labels=2, vocab_size=len(vocabulary), pad_token_id=0)
    model.save_pretrained(folder)
    return folder


def pytest_collection_finish() -> None:
    """What was imported stays: no collection of garbage needs to look at it again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What the Hub's client warns of when it uploads through LFS is between it and its HTTP library."""
    for item in items:
        if "hub" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"))


@pytest.fixture(scope="session")
def _hub_server() -> Iterator[Server]:
    from huggingface_hub import close_session

    with SERVER.serving(), pytest.MonkeyPatch.context() as patch:
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, "127.0.0.1")
        close_session()  # a client that was made before has read other proxies
        yield SERVER
        close_session()


@pytest.fixture
def hub(_hub_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub of this test's own, empty but for its users; a cache and a home of its own; nobody logged in.

    ``someone`` (token ``hf_someone``) and ``reader`` (``hf_reader``, for reading alone) are users.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    from ptuning.adapters.hub import known

    home = tmp_path / "huggingface"
    _hub_server.hub = Hub(tokens={"hf_someone": User("someone"), "hf_reader": User("reader", writes=False)})
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        constants, "HF_HUB_DISABLE_XET", True
    )  # its storage is not HTTP of the Hub's: plain LFS
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
    quick = SimpleNamespace(sleep=lambda seconds: None, time=time.time)
    monkeypatch.setattr(_http, "time", quick)  # the client tries again after seconds; here at once
    known.cache_clear()
    yield _hub_server.hub
    known.cache_clear()


def sentiment(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows that a prompt can learn: a text is ``good`` or ``bad`` by one word that stands anywhere in it."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        label = number % 2
        words = draw.choices(WORDS[:9] + WORDS[30:], k=draw.randint(1, 4))
        words.insert(draw.randrange(len(words)), ("bad", "good")[label])
        rows.append({"text": " ".join(words), "label": ("negative", "positive")[label]})
    return rows


@pytest.fixture
def rows() -> Callable[..., list[dict[str, Any]]]:
    return sentiment


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write rows to a JSON lines file."""

    def write(name: str, rows: list[dict[str, Any]]) -> Path:
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file

    return write


@pytest.fixture
def any_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny backbone's random features are large; MiniLM's leave the head and the learning rates as they
    are.
    """
    monkeypatch.setattr("ptuning.training.recipe.HEAD_STEP", math.inf)
    monkeypatch.setattr("ptuning.training.recipe.PROMPT_STEP", math.inf)
    monkeypatch.setattr("ptuning.training.head_init.FIRST_LOGITS", math.inf)
