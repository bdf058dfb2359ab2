"""Backbones that the estimators of a process share.

A backbone is loaded once for all estimators that use it at the same time, and is freed with the last of them.
That is safe because its weights are frozen and each task has a view of its own
(:meth:`~ptuning.model.backbone.Backbone.view`). What is kept here is a weak reference only: the estimators
keep the backbone, and :class:`Keeper` lets the clones of an estimator keep one between them.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from transformers import PreTrainedTokenizerBase

from ptuning.model.backbone import Backbone
from ptuning.model.embedded import canonical, resolve
from ptuning.model.loading import load_backbone
from ptuning.task import Task
from ptuning.threads import BACKBONES


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedBackbone:
    """A backbone and its tokenizer; take a view of it for a task.

    Attributes:
        place: The device and the dtype that it was loaded to.
    """

    backbone: Backbone
    tokenizer: PreTrainedTokenizerBase | None
    place: tuple[torch.device, torch.dtype]

    @property
    def is_moved(self) -> bool:
        """Whether a user has moved or rounded the weights, through a fitted model."""
        return self.place != (self.backbone.device, self.backbone.dtype)


class Keeper:
    """Keeps a backbone in memory for an estimator and its clones, the one that was used last.

    Cross-validation clones an estimator for each fold and drops the clone: without a keeper, each fold would
    load the backbone again.
    """

    shared: SharedBackbone | None = None


_SHARED: WeakValueDictionary[Hashable, SharedBackbone] = WeakValueDictionary()


def shared_backbone(
    name: str,
    revision: str | None,
    task: Task,
    dtype: torch.dtype | None,
    device: torch.device,
    *,
    token: str | bool | None = None,
    allow_pickle: bool = True,
) -> SharedBackbone:
    """The backbone called ``name`` in ``dtype`` on ``device``: loaded now, or already in use.

    Args:
        task: The backbone is loaded with a head of its width.
        token: The Hub's access token, if it has to be loaded.
        allow_pickle: As in :func:`~ptuning.model.loading.load`.
    """
    width, files = (task.num_labels, task.problem_type), _files(name)

    def key(revision: str | None) -> Hashable:
        return (canonical(name), revision, width, dtype, device, files)

    with BACKBONES:
        found = _SHARED.get(key(revision))
        if found is None or found.is_moved:
            backbone, tokenizer = load_backbone(name, *width, None, revision, dtype, token, allow_pickle)
            backbone = backbone.to(device)
            found = SharedBackbone(
                backbone=backbone, tokenizer=tokenizer, place=(backbone.device, backbone.dtype)
            )
            _SHARED[key(revision)] = _SHARED[key(backbone.revision)] = found  # an adapter records the commit
        return found


def _files(name: str) -> Hashable:
    """Sizes and times of the files in a local folder: with other files it is another backbone."""
    folder = Path(resolve(name))
    if not folder.is_dir():
        return None
    facts = [(file.name, file.stat()) for file in sorted(folder.iterdir()) if file.is_file()]
    return tuple((name, fact.st_size, fact.st_mtime_ns) for name, fact in facts)
