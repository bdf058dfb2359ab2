"""Saving a task: as plain data, as an adapter folder, on the Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptuning import adapters
from ptuning.model.config import prompt_to_dict
from ptuning.model.task_module import TaskModule
from ptuning.task import Task


class SavingMixin(TaskModule):
    """The ways to save a :class:`~ptuning.model.ptuning.PTuningModel`."""

    def to_adapter(
        self,
        *,
        values: Mapping[str, Tensor] | None = None,
        metrics: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> adapters.Adapter:
        """The task as plain data: what :meth:`save_pretrained` writes.

        Args:
            values: Other values of all :meth:`task_parameters`, such as those of an earlier step.
            metrics: See :meth:`save_pretrained`.
            extra: See :meth:`save_pretrained`.
        """
        task = self.twin(backbone=False) if values is None else self.with_values(values)
        with torch.no_grad():
            prompt = task.prompt_encoder.eval()().float().cpu().clone()
            units = None if task.units is None else task.units().float().cpu().clone()
        head = {name: value.detach().float().cpu().clone() for name, value in task.head.named().items()}
        if (source := self.loaded) is not None and _same(source, prompt, units, head):
            # Unchanged since it was loaded, so its metrics are still valid, if it reads texts as before.
            alike = _reading(source.task) == _reading(self.task)
            measured, facts = (source.metrics, source.extra) if alike else ({}, _not_measured(source.extra))
            metrics = measured if metrics is None else metrics
            extra = facts if extra is None else extra
        if self.learning_rate_scales != (1.0, 1.0):
            extra = {**(extra or {}), "rate_scales": list(self.learning_rate_scales)}
        return adapters.Adapter(
            prompt=prompt_to_dict(self.provenance),
            task=self.task,
            backbone=asdict(self.backbone.facts(without=head)),
            prompt_tensor=prompt,
            units=units,
            head=head,
            anchors=self.anchors,
            cloze=self.cloze,
            metrics=dict(metrics or {}),
            extra=dict(extra or {}),
        )

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        metrics: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
        peft: bool = False,
    ) -> Path:
        """Write the adapter folder, completely or not at all.

        Args:
            folder: The destination. An adapter there is replaced, unless its model card was edited; anything
                else is refused.
            metrics: Metrics for the model card. If left out, those of the adapter that the task was loaded
                from, if neither its parameters nor the task's ``max_length`` or windows have changed.
            extra: Anything else worth keeping, as JSON. If left out, that of the adapter that the task was
                loaded from, if its parameters have not changed.
            peft: Make sure that ``peft.PeftModel.from_pretrained`` can load it: a regression's scaling goes
                into the head, and what PEFT does not support is refused.

        Raises:
            OutputError: it could not be written; the previous contents are unchanged.
            AdapterError: with ``peft``, something that PEFT does not support; names the option to change.
        """
        adapter = self.to_adapter(metrics=metrics, extra=extra)
        return adapters.save(adapters.for_peft(adapter) if peft else adapter, Path(folder))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        license: str | None = None,
        backbone: str | None = None,
        metrics: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """Upload the adapter, with its model card, in one commit.

        Args:
            repo_id: ``"owner/name"``; created if it does not exist.
            private: Whether a new repository is private; by default the account's setting.
            token: The Hub's access token; by default the one you logged in with.
            revision: A branch, created if it does not exist.
            commit_message: The commit message.
            create_pr: Open a pull request instead, if you may not write.
            license: The licence, as the Hub names it (``"apache-2.0"``).
            backbone: The backbone's public name, if it was a folder on this machine.
            metrics: As :meth:`save_pretrained` takes them.
            extra: As :meth:`save_pretrained` takes it.

        Returns:
            The URL of the commit or pull request.

        Raises:
            AdapterError: the Hub refused it or cannot be reached; says what to do.
        """
        with tempfile.TemporaryDirectory() as scratch:
            folder = self.save_pretrained(Path(scratch) / "adapter", metrics=metrics, extra=extra)
            return adapters.push(
                folder,
                repo_id,
                private=private,
                token=token,
                revision=revision,
                commit_message=commit_message,
                create_pr=create_pr,
                license=license,
                backbone=backbone,
            )


def _reading(task: Task) -> tuple[object, ...]:
    """How much of a long text it reads; the metrics depend on it."""
    return task.max_length, task.max_windows, task.max_windows > 1 and task.window_overlap


def _not_measured(extra: Mapping[str, Any]) -> dict[str, Any]:
    """``extra`` of a training without what it says about the metrics."""
    return {name: value for name, value in extra.items() if name not in ("calibration", "learned")}


def _same(
    adapter: adapters.Adapter, prompt: Tensor, units: Tensor | None, head: Mapping[str, Tensor]
) -> bool:
    """Whether these values are the same as the adapter's."""
    pairs = [(adapter.prompt_tensor, prompt)]
    pairs += [(adapter.head[name], value) for name, value in head.items() if name in adapter.head]
    if units is not None and adapter.units is not None:
        pairs.append((adapter.units, units))
    return all(torch.equal(one, other) for one, other in pairs)
