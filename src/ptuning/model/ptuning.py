"""PTuningModel: prompt + placement + backbone + head.

The way of a batch: tokens come padded on either side; the prompt encoder makes the prompt (``prompt.py``),
text and prompt are laid out for the backbone (``sequence.py``, ``placement.py``), which runs with the
task's head on top (``backbone.py``), and the loss is computed in fp32.

Parameters, state dict and mode are in ``task_module.py``, loading in ``opening.py``, saving in ``saving.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

from ptuning import adapters
from ptuning.errors import ConfigError, DataError, TrainingDiverged
from ptuning.model.batch import Batch
from ptuning.model.config import DeepPrompt
from ptuning.model.continuing import kept_rows, relabelled
from ptuning.model.deep import DeepTask
from ptuning.model.encoder import Encoder
from ptuning.model.opening import OpeningMixin
from ptuning.model.saving import SavingMixin
from ptuning.model.sequence import Prepared, text_layout, text_rows
from ptuning.model.targets import as_targets, loss_of, refuse
from ptuning.model.windows import counts_of, mean_of_windows
from ptuning.task import Label

_DISABLED: ContextVar[frozenset[object]] = ContextVar("disabled", default=frozenset())
"""The keys of the models that :meth:`PTuningModel.disabled` has switched off in this thread."""


class PTuningModel(OpeningMixin, SavingMixin):
    """A frozen backbone that has learned a task through a prompt.

    An ordinary ``nn.Module`` that returns transformers' ``SequenceClassifierOutput``: it works in this
    project's loop, in ``transformers.Trainer``, and in your own. Its ``parameters()`` and ``state_dict()``
    have the task's parameters alone, by default under 1 % as many as the backbone has. The backbone is
    ``model.backbone``; it moves with the model (``to``, ``half``).

    Arguments and errors are those of :class:`~ptuning.model.task_module.TaskModule`.
    """

    _plain = False
    check_loss: bool = True
    """Whether a loss that is not finite raises :class:`TrainingDiverged` while training, before it gets into
    the parameters. A loop that checks for itself may turn it off."""

    # --------------------------------------------------------------------------------------- use

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        segment_ids: Tensor | None = None,
        prompt: Tensor | Prepared | None = None,
        stem: Tensor | None = None,
        windows: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Classify a batch.

        Args:
            input_ids: ``[B, T]``, padded on either side.
            attention_mask: ``[B, T]``, 1 at real tokens; all of them if left out.
            token_type_ids: ``[B, T]``, as the tokenizer gives them; ignored if the backbone has no types.
            labels: ``[B]`` class indices (-100 for a row that does not count), ``[B, C]`` zeros and ones for
                multi-label, or ``[B]`` targets in their own unit for regression.
            segment_ids: ``[B, T]``: 0 first text, 1 second, -1 special; inferred from the other arguments if
                possible.
            prompt: In place of the task's own: ``[P, E]`` or one per row ``[B, P, E]``; deep
                ``[L−s, 2, P, H_kv]`` or ``[B, L−s, 2, P, H_kv]``; or what :meth:`prepared` returned. Head and
                virtual units stay this task's, so with units there cannot be one per row.
            stem: ``[B, T, H]``, what :meth:`stem` returned for these tokens.
            windows: ``[R]``, if the batch has the windows of R texts: how many each has, one after the other,
                B in all. The logits ``[R, C]`` are the means over each text's windows, and ``labels`` are of
                the R texts.
            return_dict: ``False`` for a tuple: ``(loss, logits)``, or ``(logits,)`` without labels.

        Returns:
            ``logits`` ``[B, C]`` in fp32, a regression's in the target's unit; ``loss`` if labels were given.

        Raises:
            DataError: text and prompt together are longer than the backbone's limit; labels that the task
                cannot take; windows that are not as many as the batch has.
            TrainingDiverged: while training, a loss that is not finite.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        attention_mask = attention_mask.to(torch.long)
        if token_type_ids is not None and not self.backbone.uses_segments:
            token_type_ids = None
        batch = Batch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            segment_ids=segment_ids,
        )
        if self.is_plain:
            logits = self._without_prompt(batch).float()
        else:
            self._check_length(attention_mask)
            logits = self._prompted(batch, prompt, stem).float()
            logits = self.task.kind.logits(logits, self.task)
        if windows is not None:
            logits = mean_of_windows(logits, counts_of(windows, len(logits)))
        loss = None if labels is None else self.loss(logits, labels)
        if loss is not None and self.check_loss:
            self._check_loss(loss.detach(), logits, labels)
        out = SequenceClassifierOutput(loss=loss, logits=logits)
        return out.to_tuple() if return_dict is False else out

    def plain(self) -> Self:
        """The plain backbone with its original head, as a model with the same arguments as this one.

        With a cloze head it reads the template's words too: zero-shot classification.
        """
        made = self.twin(backbone=False)
        made._plain = True
        return made

    @property
    def is_plain(self) -> bool:
        """Whether this is the backbone without the prompt: :meth:`plain`, or in a :meth:`disabled` block."""
        return self._plain or self._key in _DISABLED.get()

    @contextmanager
    def disabled(self) -> Iterator[Self]:
        """In the ``with`` block this model is :meth:`plain`, in this thread alone.

        Yields:
            :meth:`plain`, which is so in any thread and after the block, too.
        """
        # A context variable: an attribute of the model would change the answers of other threads.
        token = _DISABLED.set(_DISABLED.get() | {self._key})
        try:
            yield self.plain()
        finally:
            _DISABLED.reset(token)

    def prepared(self) -> Prepared:
        """The prompt, with everything computed that does not depend on the text.

        For many batches of one task: the prompt encoder runs once, and so does a decoder's prompt in front of
        the text. Make it again after a change of the task's parameters.
        """
        made: Tensor = self.prompt_encoder()
        joined = self._joined
        return (
            Prepared(prompt=made)
            if joined is None
            else joined.prepared(self._encoder(), made, self.tokenizer)
        )

    def with_labels(self, labels: Iterable[Label]) -> Self:
        """The task with other labels: a new model on the same backbone, to train further.

        Labels that this task has keep their rows of the head, and so their logits. The row of any other label
        is the mean of those; :func:`~ptuning.fit` fits it to the training rows before the first step, by
        logistic regression (with several labels per row it starts as the mean). The prompt starts as this
        task's; a prompt encoder is not taken over. Scales of the learning rates are kept. Class weights are
        not, because there is one per label: set them with :meth:`set_class_weights`.

        Args:
            labels: All labels in the order of the logits. Those of this task that it leaves out are lost.

        Raises:
            ConfigError: a regression, a string in place of several labels, or no label of this task.
        """
        if isinstance(labels, str):
            raise ConfigError(
                "labels", got=f"the string {labels!r}", expected="several labels", remedy="pass a list"
            )
        labels, known = tuple(labels), self.task.labels
        if not known:
            raise ConfigError(f"with_labels: a {self.task.kind.title} has no labels", remedy="leave it out")
        unknown = ConfigError(
            "labels",
            got=repr(list(labels)[:6]),
            expected=f"at least one that this task has, such as {known[0]!r}",
            remedy="make a new model with PTuningModel.from_backbone",
        )
        if not any(label in known for label in labels):
            raise unknown
        task = replace(self.task.uncalibrated(), labels=labels)
        rows = kept_rows(self.task, task)
        if all(row is None for row in rows):  # 1 is not True
            raise unknown
        made = self.from_adapter(relabelled(self.to_adapter(), task), self.backbone, tokenizer=self.tokenizer)
        made.scale_learning_rates(*self.learning_rate_scales)
        made.backbone.engine = self.backbone.engine
        made.new_rows = tuple(at for at, row in enumerate(rows) if row is None or row in self.new_rows)
        return made

    @property
    def stem_layer(self) -> int:
        """The first layer whose input depends on the task, so the layers below can be cached; 0 if they
        cannot.
        """
        config = self.prompt_config
        if self._wording is not None:  # words are inserted into the text
            return 0
        if not isinstance(config, DeepPrompt) or not self.backbone.has_stem(self.head.names):
            return 0
        if config.pooling == "similarity":  # a token that both texts are read with is two things there
            return 0
        return config.first_layer

    def stem(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """``[B, T, H]``: what enters layer :attr:`stem_layer`, in the order of the given tokens.

        Arguments are those of :meth:`forward`. It does not depend on the task: see
        :meth:`~ptuning.model.encoder.Encoder.stem`.

        Raises:
            ConfigError: :attr:`stem_layer` is 0.
        """
        self._check_stem()
        attention_mask = attention_mask.long()
        batch = Batch(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        places = text_layout(self.backbone, attention_mask)
        rows = text_rows(self.backbone, batch, places, offset=self.position_offset)
        return places.restored(Encoder(self.backbone).stem(rows, self.stem_layer), attention_mask.shape[1])

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
    ) -> Tensor:
        """``[B, T, H]``: the transformer's output for the text's tokens, in their order, with the prompt.

        It is what ``last_hidden_state`` is without a prompt; arbitrary at padding. Arguments are those of
        :meth:`forward`. With pooling ``similarity`` both texts of a pair are encoded together.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        batch = Batch(
            input_ids=input_ids,
            attention_mask=attention_mask.long(),
            token_type_ids=token_type_ids if self.backbone.uses_segments else None,
            segment_ids=segment_ids,
        )
        self._check_length(batch.attention_mask)
        prompt: Tensor = self.prompt_encoder()
        if (joined := self._joined) is None:
            return self._deep(prompt).hidden_states(batch)
        return joined.hidden_states(self._encoder(), batch, prompt)

    def _check_stem(self) -> None:
        if self.stem_layer == 0:
            raise ConfigError(
                "stem: the layers below this model's first prompt cannot be cached",
                expected="a deep prompt with first_layer above 0, a pooling other than similarity, the "
                "backbone's dropout off, a classification head without parameters of the transformer's "
                "layers, and an architecture with an attention interface",
            )

    def _prompted(self, batch: Batch, prompt: Tensor | Prepared | None, stem: Tensor | None) -> Tensor:
        """``[B, C]``: the head's output for the text with the prompt."""
        if stem is not None:
            self._check_stem()
        if not isinstance(prompt, Prepared):
            prompt = Prepared(prompt=self.prompt_encoder() if prompt is None else prompt)
        if (joined := self._joined) is not None:
            encoder = self._encoder()
            return encoder.logits(*joined.arranged(encoder, batch, prompt))
        if self.units is not None and prompt.prompt.dim() == 5:
            raise ConfigError(
                "prompt: got one per row, but this task has virtual units, which are the same for all rows",
                remedy="run the rows of each task separately, or name an adapter per row (ptuning.peft)",
            )
        return self._deep(prompt.prompt).logits(batch, stem)

    def _without_prompt(self, batch: Batch) -> Tensor:
        """``[B, C]``: the plain backbone's, for the text with the words of a template."""
        if (wording := self._wording) is not None:
            batch, _ = wording.filled(self.backbone, batch)
        rows = text_rows(self.backbone, batch, text_layout(self.backbone, batch.attention_mask))
        return Encoder(self.backbone, verbalizer=self.verbalizer).logits(rows)

    def _encoder(self) -> Encoder:
        """The backbone with this task's head, for one forward pass."""
        head = {name: value for name, value in self.head.named().items() if name != adapters.MIX}
        return Encoder(self.backbone, head, self.verbalizer)

    def _deep(self, prompts: Tensor) -> DeepTask:
        assert isinstance(self.prompt_config, DeepPrompt)
        return DeepTask(
            encoder=self._encoder(),
            config=self.prompt_config,
            prompts=prompts,
            units=None if self.units is None else self.units(),
            mix=self.head.named().get(adapters.MIX),
            wording=self._wording,
        )

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The task's loss: cross-entropy, binary cross-entropy, or the squared error of standardised targets.

        Args:
            logits: ``[B, C]``, as :meth:`forward` gives them.
            labels: As :meth:`forward` takes them.

        Returns:
            A scalar in fp32; on an accelerator NaN if a label's value is out of range.

        Raises:
            DataError: labels of a type or shape that the task does not have; on the CPU also of such a value.
        """
        return loss_of(logits, labels, self.task, self.class_weights)

    def _check_loss(self, loss: Tensor, logits: Tensor, labels: Any) -> None:
        if not self.training and (loss.device.type == "cpu" or self.task.kind.nan_targets_allowed):
            return  # the labels were checked; an evaluation may go on with a loss of NaN
        if bool(loss.isfinite()):
            return
        if isinstance(labels, Tensor):
            refuse(as_targets(labels, logits, self.task), self.task)
        if self.training:
            raise TrainingDiverged(
                "the loss",
                got=float(loss),
                expected="a finite number",
                remedy="this batch changed nothing; lower the learning rate, or go back to the last good "
                "checkpoint",
            )

    def activation_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        """Keep only each layer's input, and compute the rest again in the backward pass.

        The Trainer calls this if its arguments say so; torch's options have no effect here.
        """
        self._checkpoint_activations(True)

    def activation_checkpointing_disable(self) -> None:
        """Keep the layers' activations, the default."""
        self._checkpoint_activations(False)

    # Their names before transformers 5.
    gradient_checkpointing_enable = activation_checkpointing_enable
    gradient_checkpointing_disable = activation_checkpointing_disable

    def _checkpoint_activations(self, wanted: bool) -> None:
        self.backbone.engine = replace(self.backbone.engine, checkpoint_activations=wanted)

    def _check_length(self, attention_mask: Tensor) -> None:
        limit = self.max_text_tokens
        if limit is None or attention_mask.shape[1] <= limit:
            return  # the common case, without reading values
        lengths = attention_mask.sum(1)
        if bool((lengths > limit).any()):
            row = int(lengths.argmax())
            raise DataError(
                f"row {row} of the batch",
                got=f"{int(lengths[row])} tokens",
                expected=f"at most {limit}: {self.backbone.name} takes {self.backbone.max_positions}, the "
                f"task {self.task.max_length} (None: no limit), minus {self.inserted_tokens} inserted tokens "
                f"and {self.position_offset} skipped positions",
                remedy="truncate the text (never the prompt), or use fewer virtual tokens",
            )
