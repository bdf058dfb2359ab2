"""Rows of different tasks in one forward pass: each answer is the one that its task alone would give.

Rows share a pass if their tasks have the same key (:class:`~ptuning.model.packed.PackedTask`). In it they are
padded to one length; each has its own prompt, virtual units, readout and head, gathered from its task. A pair
whose texts are encoded apart (pooling ``similarity``) takes two rows of the pass.

Shapes: N rows of the caller, B rows of a pass, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ptuning.errors import DataError
from ptuning.model.backbone import Backbone
from ptuning.model.batch import Batch, joined_batches
from ptuning.model.encoder import Encoder
from ptuning.model.layer_parts import LayerPart
from ptuning.model.limits import joined_of
from ptuning.model.packed import DEEP, PackedTask, input_key
from ptuning.model.placement import apart
from ptuning.model.readout import EveryToken, LastSimilarity, LastToken
from ptuning.model.row_heads import row_head
from ptuning.model.row_parts import Places, RowPrompts, RowReadout, RowUnits
from ptuning.model.rows import Rows
from ptuning.model.sequence import Prepared, text_layout, text_rows
from ptuning.model.verbalizer import cloze_scores


def mixed_logits(backbone: Backbone, batch: Batch, tasks: Sequence[PackedTask]) -> list[Tensor]:
    """The logits of each row, ``[C]`` of its task in fp32, on the backbone's device.

    Args:
        backbone: The tasks' backbone, or a view of it.
        batch: ``[N, T]``; with ``segment_ids`` if a task needs them.
        tasks: The task of each row. There is one pass for each different key among them.

    Raises:
        DataError: a row that is longer than its task's limit.
    """
    _check_lengths(batch, tasks)
    groups: dict[Hashable, list[int]] = {}
    for row, key in enumerate(_keys(backbone, batch, tasks)):
        groups.setdefault(key, []).append(row)
    found: list[Tensor] = [torch.empty(0)] * len(tasks)
    for key, rows in groups.items():
        part = batch if len(groups) == 1 else _rows_of(batch, rows)
        for row, logits in zip(rows, _pass(backbone, key, part, [tasks[row] for row in rows]), strict=True):
            found[row] = logits
    return found


def _check_lengths(batch: Batch, tasks: Sequence[PackedTask]) -> None:
    width = batch.input_ids.shape[1]
    limited = [task.max_text_tokens is not None and task.max_text_tokens < width for task in tasks]
    if not any(limited):
        return
    lengths = batch.attention_mask.sum(1).tolist()
    for row, (task, length) in enumerate(zip(tasks, lengths, strict=True)):
        if task.max_text_tokens is not None and length > task.max_text_tokens:
            raise DataError(
                f"row {row} of the batch, for the task {task.name!r}",
                got=f"{length} tokens",
                expected=f"at most {task.max_text_tokens}",
                remedy="truncate the text",
            )


def _keys(backbone: Backbone, batch: Batch, tasks: Sequence[PackedTask]) -> list[Hashable]:
    """Each row's key. A decoder's prompt that was computed once goes with the text's embeddings after all
    where a sliding window would exclude it, or other tokens are in front of it.
    """
    width = batch.input_ids.shape[1]
    leading = {id(task): task for task in tasks if task.embeddings is not None and task.prompts is not None}
    shares = {
        key: backbone.shares_leading(width + task.inserted_tokens) and task.alone is None
        for key, task in leading.items()
    }
    fronts = any(task.front for task in leading.values())
    places = text_layout(backbone, batch.attention_mask) if fronts else None
    arranged = None if places is None else (places.arrange(batch.input_ids), places.mask)
    keys: list[Hashable] = []
    for row, task in enumerate(tasks):
        if id(task) in leading and task.alone is None:
            ids: list[int] = []
            if task.front and arranged is not None:
                ids = arranged[0][row][arranged[1][row].bool()][: len(task.front)].tolist()
            if not shares[id(task)] or tuple(ids) != task.front:
                keys.append(input_key(task.config, task.anchors))
                continue
        keys.append(task.key)
    return keys


def _rows_of(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some of the rows, without columns in which none of them has a token."""
    chosen = torch.tensor(rows, device=batch.input_ids.device)
    return _without_padding(_each(batch, lambda value: value[chosen]))


def _without_padding(batch: Batch) -> Batch:
    used = batch.attention_mask.any(0)
    return batch if bool(used.all()) else _each(batch, lambda value: value[:, used])


def _each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    types, segments = batch.token_type_ids, batch.segment_ids
    return Batch(
        input_ids=change(batch.input_ids),
        attention_mask=change(batch.attention_mask),
        token_type_ids=None if types is None else change(types),
        segment_ids=None if segments is None else change(segments),
    )


def _pass(backbone: Backbone, key: Hashable, batch: Batch, tasks: Sequence[PackedTask]) -> Sequence[Tensor]:
    """Each row's logits, from one pass; the rows have one key."""
    if (model := tasks[0].alone) is not None:
        found: Tensor = model(**batch.arguments()).logits
        return found.unbind()
    encoder = Encoder(backbone)
    parts: Sequence[LayerPart]
    places: Mapping[str, Places]
    if key == DEEP:
        rows, parts, places = _deep(backbone, batch, tasks)
    else:
        prompts = torch.stack([task.embeddings for task in tasks if task.embeddings is not None])
        joined = joined_of(backbone, tasks[0].config, tasks[0].anchors, tasks[0].wording)
        assert joined is not None  # the key says so
        rows, parts = joined.arranged(encoder, batch, Prepared(prompt=prompts))
        everywhere = torch.arange(len(tasks), device=prompts.device)
        places = {tasks[0].pooling: Places(answers=everywhere, rows=everywhere)}
    read, mask = _read(encoder, rows, parts, tasks, places)
    return [
        task.task.kind.logits(its[: task.task.num_labels].float(), task.task)
        for task, its in zip(tasks, _heads(backbone, read, mask, tasks), strict=True)
    ]


def _heads(backbone: Backbone, read: Tensor, mask: Tensor, tasks: Sequence[PackedTask]) -> Sequence[Tensor]:
    """Each row's output of its task's head; those of classification heads are padded with zeros.

    Args:
        read, mask: Of :func:`_read`.
    """
    found: list[Tensor] = [torch.empty(0)] * len(tasks)
    if own := [row for row, task in enumerate(tasks) if not task.is_cloze]:
        distinct, owners = _distinct([tasks[row] for row in own])
        head = row_head(backbone, [task.head for task in distinct], owners)
        its_read, its_mask = (read, mask) if len(own) == len(tasks) else (read[own], mask[own])
        for row, logits in zip(own, head(its_read, its_mask), strict=True):
            found[row] = logits
    cloze = [row for row, task in enumerate(tasks) if task.is_cloze]
    for task in {id(tasks[row]): tasks[row] for row in cloze}.values():
        its = [row for row in cloze if tasks[row] is task]
        states = read[its] if read.dim() == 2 else read[its, 0]
        scores = cloze_scores(backbone.language_head, states, task.words)
        for row, logits in zip(its, scores, strict=True):
            found[row] = logits
    return found


def _distinct(tasks: Sequence[PackedTask]) -> tuple[list[PackedTask], list[int]]:
    """Each task once; and for each of ``tasks`` its place among these."""
    known: dict[int, int] = {}
    owners = [known.setdefault(id(task), len(known)) for task in tasks]
    once = dict(zip(owners, tasks, strict=True))
    return [once[owner] for owner in range(len(known))], owners


def _deep(
    backbone: Backbone, batch: Batch, tasks: Sequence[PackedTask]
) -> tuple[Rows, Sequence[LayerPart], Mapping[str, Places]]:
    """The rows of a pass with deep prompts, what its layers do, and where each answer is read."""
    device = batch.input_ids.device
    spread, sources = _spread(backbone, batch, tasks)
    spread = _filled(backbone, spread, [tasks[source] for source in sources])
    # Texts that are encoded apart have left each other's places empty.
    longest = int(spread.attention_mask.sum(1).max())
    layout = text_layout(backbone, spread.attention_mask)
    layout = layout.cut(longest, pad_left=backbone.architecture.causal)
    offsets = [tasks[source].position_offset for source in sources]
    offset = offsets[0] if len(set(offsets)) == 1 else torch.tensor(offsets, device=device)[:, None]
    rows = text_rows(backbone, spread, layout, offset=offset)
    distinct, owners = _distinct([tasks[source] for source in sources])
    parts: list[LayerPart] = [RowPrompts(distinct, owners, backbone.head_dim)]
    if any(task.units is not None for task in distinct):
        parts.append(RowUnits(distinct, owners))
    by_pooling: dict[str, list[int]] = {}
    for row, source in enumerate(sources):
        by_pooling.setdefault(tasks[source].pooling, []).append(row)
    places = {
        pooling: Places(
            answers=torch.tensor(list(dict.fromkeys(sources[row] for row in its)), device=device),
            rows=torch.tensor(its, device=device),
        )
        for pooling, its in by_pooling.items()
    }
    return rows, parts, places


def _filled(backbone: Backbone, batch: Batch, tasks: Sequence[PackedTask]) -> Batch:
    """The batch with the words of each task's template, padded to one length."""
    if all(task.wording is None for task in tasks):
        return batch
    groups: dict[int, list[int]] = {}
    for row, task in enumerate(tasks):
        groups.setdefault(0 if task.wording is None else id(task), []).append(row)
    parts = []
    for rows in groups.values():
        part, wording = _rows_of(batch, rows), tasks[rows[0]].wording
        parts.append(part if wording is None else wording.filled(backbone, part)[0])
    order = torch.tensor([row for rows in groups.values() for row in rows]).argsort()
    return joined_batches(backbone, parts, order.to(batch.input_ids.device))


def _spread(backbone: Backbone, batch: Batch, tasks: Sequence[PackedTask]) -> tuple[Batch, Sequence[int]]:
    """The pass's rows, and the caller's row that each is of: the two texts of some pairs are two rows, behind
    all others, first all first texts.
    """
    fronts = [len(task.front) for task in tasks]
    mask = batch.attention_mask
    if any(fronts):  # these tokens are in the prompt's keys and values
        mask = mask * (mask.cumsum(1) > torch.tensor(fronts, device=mask.device)[:, None])
        batch = _without_padding(replace(batch, attention_mask=mask))
    apart_from_another = [task.pooling == "similarity" for task in tasks]
    if not any(apart_from_another):
        return batch, range(len(tasks))
    pairs = [row for row, its in enumerate(apart_from_another) if its]
    others = [row for row, its in enumerate(apart_from_another) if not its]
    sources = [*others, *pairs, *pairs]
    types = batch.token_type_ids
    if types is not None:
        types = types[sources]
        types[len(others) :] = 0
    segments = batch.segments(backbone)
    both = apart(batch.attention_mask[pairs], segments[pairs])
    single = segments[pairs].clamp(max=0).repeat(2, 1)
    return (
        Batch(
            input_ids=batch.input_ids[sources],
            attention_mask=torch.cat((batch.attention_mask[others], both)),
            token_type_ids=types,
            segment_ids=torch.cat((segments[others], single)),
        ),
        sources,
    )


def _read(
    encoder: Encoder,
    rows: Rows,
    parts: Sequence[LayerPart],
    tasks: Sequence[PackedTask],
    places: Mapping[str, Places],
) -> tuple[Tensor, Tensor]:
    """What the head of each row reads, ``[N, H]``, and the mask ``[N, T]``. A head that pools tokens itself
    gets ``[N, T, H]``, in which a row that is read in another way is one token.
    """
    native, mask = encoder.native_readout(), rows.attention_mask
    readout = RowReadout(tasks, places, native, mask, rows.read)
    states = encoder.encode(rows, (*parts, readout))
    read = encoder.finish(readout.read(states))
    if (pairs := places.get("similarity")) is not None and isinstance(native, LastToken):
        read[pairs.answers] = LastSimilarity(encoder.finish).read(states[pairs.rows])
    its = places.get("native")
    if its is None or not isinstance(native, EveryToken):
        return read, mask
    every, seen = read.new_zeros(len(read), *states.shape[1:]), mask.new_zeros(len(read), mask.shape[1])
    every[:, 0], seen[:, 0] = read, 1
    every[its.answers], seen[its.answers] = encoder.finish(states[its.rows]), mask[its.rows]
    return every, seen
