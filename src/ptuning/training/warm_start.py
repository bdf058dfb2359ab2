"""Warm start: a run that starts from a trained adapter (``init_from``) instead of random values.

The adapter decides the backbone and the prompt's configuration, unless the user gives them; what is given has
to be compatible with it. For the same kind of task, the head keeps its rows by label and a regression its
unit, so the model is the adapter's before the first step. For another kind of task, or with ``init_head:
new``, prompt, virtual units and layer mix are taken over, and the output layer is new.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from ptuning import adapters
from ptuning.adapters import Adapter
from ptuning.errors import AdapterError, ConfigError
from ptuning.model.backbone import Backbone
from ptuning.model.config import ClozeHead, EmbeddingEncoder, PromptConfig, prompt_from_dict
from ptuning.model.continuing import kept_rows, relabelled, with_prompt
from ptuning.model.loading import check_backbone
from ptuning.model.ptuning import PTuningModel
from ptuning.paths import local_path
from ptuning.task import Task
from ptuning.training.config import TrainConfig

_GROWS = ("num_virtual_units", "num_queries")
"""A run may have more of these than the adapter, because they start without an effect."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A trained adapter that runs start from.

    Attributes:
        name: As the user wrote it.
        public: Its name without local folders, for a record.
        version: The digest of its version.
        adapter: Its contents.
    """

    name: str
    public: str
    version: str
    adapter: Adapter

    @classmethod
    def read(cls, name: str) -> Source:
        """Find and read an adapter.

        Raises:
            AdapterError: no adapter there, or one that was altered or cut short.
        """
        folder = adapters.locate(name)
        public = folder.resolve().name if folder == local_path(name, "init_from") else name
        while True:  # until it was not replaced meanwhile
            before = adapters.version(folder)
            adapter = adapters.load(folder)
            if adapters.version(folder) == before:
                return cls(name=name, public=public, version=before, adapter=adapter)

    @property
    def task(self) -> Task:
        return self.adapter.task

    @property
    def prompt(self) -> PromptConfig:
        """The recorded configuration of the prompt."""
        return prompt_from_dict(self.adapter.prompt)

    def settled(self, config: TrainConfig, say: Callable[[str], None]) -> TrainConfig:
        """``config`` with the adapter's prompt and backbone where the user left them out.

        Raises:
            ConfigError: an option of the prompt that contradicts the adapter.
            AdapterError: no backbone is given, and the adapter names none.
        """
        prompt = self._prompt(config, say)
        values: dict[str, Any] = {"prompt": prompt}
        if "backbone" in config.left_open:
            if not self.adapter.backbone["name"]:
                raise AdapterError(
                    f"{self.name} does not name its backbone",
                    remedy="name it with --backbone (in Python: backbone=…)",
                )
            values |= {name: self.adapter.backbone[recorded] for name, recorded in _BACKBONE.items()}
        return config.model_copy(update=values)

    def _prompt(self, config: TrainConfig, say: Callable[[str], None]) -> PromptConfig:
        """The prompt's configuration: the adapter's, with what the user gave."""
        asked, have, chosen = config.prompt, self.prompt, dict[str, Any]()
        given = [name for name in vars(asked) if f"prompt.{name}" not in config.left_open]
        for name in sorted(given, key=lambda name: name != "depth"):  # the depth decides which others exist
            chosen |= self._checked(name, getattr(asked, name), have)
        if (kind := have.encoder.kind) != "embedding":
            say(
                f"the prompt of {self.name} was trained with the encoder {kind!r}; an adapter has only its "
                "output, so the prompt is now trained directly (prompt.encoder: embedding)"
            )
        return replace(have, **{"encoder": EmbeddingEncoder(), **chosen})

    def _checked(self, name: str, value: Any, have: PromptConfig) -> dict[str, Any]:
        """An option of the prompt that the user gave, if it is compatible with the adapter's."""
        option, says = f"prompt.{name}", f"as {self.name} has"
        if name == "train_head":
            return {name: value}
        if isinstance(value, ClozeHead) and have.head and value.template == have.head.template:
            return {name: value}  # new labels have words of their own
        if isinstance(value, ClozeHead):
            theirs = "a classification head" if have.head is None else repr(have.head.template)
            raise ConfigError(
                "prompt.head.template",
                got=repr(value.template),
                expected=f"{theirs}, {says}",
                remedy="leave prompt.head out, or leave init_from out",
            )
        if name == "init":
            raise ConfigError(
                f"{option} and init_from", got="both", expected="one of them", remedy=f"leave {option} out"
            )
        if name == "encoder":
            if isinstance(value, EmbeddingEncoder):
                return {}
            raise ConfigError(
                option,
                got=repr(value.kind),
                expected="'embedding' with init_from, because an adapter has only the encoder's output",
                remedy="leave it out",
            )
        if not hasattr(have, name):
            raise ConfigError(
                f"{option}: the adapter's prompt has depth {have.depth!r}, which has no such option",
                remedy="leave it out",
            )
        mine = have.virtual_tokens if name == "num_virtual_tokens" else getattr(have, name)
        if name == "num_queries" and value and (pooling := getattr(have, "pooling", None)) != "layers":
            raise ConfigError(
                option,
                got=value,
                expected=f"0, because {self.name} has prompt.pooling {pooling!r}, which uses no queries",
                remedy="leave it out, or leave init_from out",
            )
        if name in _GROWS and (value or 0) >= (mine or 0):
            return {name: value or mine}
        if value is None or value == mine:
            return {}
        if mine is None and name == "position_offset":  # PEFT's adapters leave it to the backbone
            return {name: value}
        least = "at least " if name in _GROWS else ""
        raise ConfigError(
            option,
            got=repr(value),
            expected=f"{least}{mine!r}, {says}",
            remedy="leave it out, or leave init_from out",
        )

    def model(
        self,
        backbone: Backbone,
        prompt: PromptConfig,
        task: Task,
        *,
        continues: bool,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> PTuningModel:
        """An adapter's values as a model to train.

        Args:
            prompt: Settled, from :meth:`settled`.
            continues: Whether ``task`` is the adapter's own, perhaps with more labels: the head is kept.

        Raises:
            AdapterMismatch: it is not the adapter's own backbone.
            ConfigError: new labels for a head that is not trained.
        """
        check_backbone(backbone, self.adapter)
        facts = asdict(backbone.facts(without=self.adapter.head))  # PEFT records few of them
        known = replace(self.adapter, backbone=facts)
        start = relabelled(with_prompt(known, prompt), task, head=continues)
        model = PTuningModel.from_adapter(start, backbone, tokenizer=tokenizer)
        if not prompt.train_head and continues and None in kept_rows(self.task, task):
            raise ConfigError(
                "prompt.train_head: the head is not trained, and the rows have labels that the adapter lacks",
                remedy="set prompt.train_head: true",
            )
        return model

    def start(self, task: Task, *, continues: bool) -> WarmStart:
        """How a run for ``task`` starts."""
        rows = kept_rows(self.task, task) if continues else []
        return WarmStart(
            version=self.version,
            keeps_head=continues,
            new_rows=tuple(at for at, row in enumerate(rows) if row is None),
            record=self._record(continues),
        )

    def summary(self, *, continues: bool) -> str:
        """What a run takes over, in a sentence."""
        head = "its head" if continues else "a new head"
        return f"warm start from {self.name}: its prompt and {head}; epoch 0 is before the first step"

    def _record(self, continues: bool) -> dict[str, Any]:
        """What an adapter records about the one that it started from."""
        adapter = self.adapter
        kept = {name: adapter.metrics[name] for name in ("validation", "test") if name in adapter.metrics}
        data = adapter.extra.get("data")
        return {
            "name": self.public,
            "sha256": self.version,
            "head": "kept" if continues else "new",
            **({"data": data} if data else {}),
            **({"metrics": kept} if kept else {}),
        }


_BACKBONE: Mapping[str, str] = {"backbone": "name", "revision": "revision"}
"""Options of a run, and the facts of an adapter's backbone that they are taken from."""


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """How a run starts from trained parameters.

    Attributes:
        keeps_head: Whether the head is the trained one.
        new_rows: The rows of the output layer that are new in a head that is kept.
        version: The digest of the adapter, if there is one.
        record: What the new adapter records.
    """

    keeps_head: bool
    new_rows: tuple[int, ...] = ()
    version: str | None = None
    record: Mapping[str, Any] | None = None
