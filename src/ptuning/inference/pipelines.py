"""transformers' text-classification pipeline for a trained task.

It is a subclass of transformers' own pipeline, so inputs, batches, generators, ``KeyDataset``, ``top_k`` and
devices work as they do there. This module only adds what a prompt changes: labels, maximum length, segments.

The module is not called ``pipeline``, because it would hide the function of that name in its package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextClassificationPipeline
from transformers.pipelines.base import ChunkPipeline
from transformers.pipelines.text_classification import ClassificationFunction

from ptuning.data.examples import Example
from ptuning.data.memory import is_table, texts_of
from ptuning.data.places import listing, shortened
from ptuning.data.tokens import Tokenise, collate, segments_of, windows_of
from ptuning.errors import ConfigError
from ptuning.inference.blank import refuse_blank
from ptuning.inference.evaluate import check_finite, pad_id
from ptuning.kinds import LabelForm
from ptuning.model.backbone import Backbone
from ptuning.model.ptuning import PTuningModel
from ptuning.model.windows import mean_of_windows
from ptuning.peft import PeftModel
from ptuning.task import Task
from ptuning.threads import TOKENIZER

#: Options that are passed to the tokenizer; its other options would change the shape of its output.
TOKENIZER_OPTIONS = (
    *("truncation", "max_length", "padding", "pad_to_multiple_of", "padding_side", "add_special_tokens"),
)
DEFAULTS = {
    LabelForm.ONE: ClassificationFunction.SOFTMAX,
    LabelForm.SEVERAL: ClassificationFunction.SIGMOID,
    LabelForm.NUMBER: ClassificationFunction.NONE,
}
"""What makes scores of logits, where the user names no function."""
FUNCTIONS = ("default", *(choice.value for choice in ClassificationFunction))
_UNSET: Any = ""  # transformers' default of top_k; None means all labels


def pipeline(
    model: str | Path | PTuningModel | PeftModel,
    *,
    backbone: str | PreTrainedModel | Backbone | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    allow_pickle: bool = False,
    device: int | str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> PTuningPipeline:
    """Transformers' text-classification pipeline for a trained task.

    Args:
        model: An adapter's folder or Hub id, or a model. For a ``PeftModel``, the active adapter is used.
        backbone, revision, token, allow_pickle, dtype: For a folder or Hub id, as in
            ``PTuningModel.from_pretrained``.
        tokenizer: The model's own by default.
        device: By default, a model stays on its device, and a folder or Hub id is loaded to the default
            device of transformers' pipelines: the first accelerator, or the CPU.
        options: Options of the pipeline (``batch_size``, ``num_workers``, ``top_k``, ``function_to_apply``)
            and of its tokenizer (``truncation``, ``max_length``, ``padding``). Texts are truncated to what
            fits next to the prompt, unless ``truncation=False``. A task that was trained on windows reads
            them in windows, unless ``truncation`` or ``max_length`` is given.

    Raises:
        ConfigError: an unknown option, or an option for loading together with a model.
        AdapterError: no adapter, or one that was altered or cut short.
    """
    if isinstance(model, PeftModel):
        model = model.active
    if isinstance(model, PTuningModel):
        loading = {"backbone": backbone, "revision": revision, "token": token, "dtype": dtype}
        for name, value in loading.items():
            if value is not None:
                raise ConfigError(
                    name,
                    got=f"{shortened(value)} together with a model",
                    expected="it only with an adapter's folder or Hub id",
                    remedy="leave it out",
                )
        found, device = model, model.device if device is None else device
    else:
        found = PTuningModel.from_pretrained(
            model,
            backbone=backbone,
            tokenizer=tokenizer,
            revision=revision,
            token=token,
            dtype=dtype,
            allow_pickle=allow_pickle,
        ).eval()
    made = PTuningPipeline if found.task.max_windows == 1 else WindowsPipeline
    return made(found, tokenizer or found.tokenizer, device=device, **options)


class PTuningPipeline(TextClassificationPipeline):
    """transformers' ``TextClassificationPipeline`` for a :class:`PTuningModel`; see :func:`pipeline`.

    Its labels are those of ``model.config``, which are the task's.
    """

    model: Any  # a PTuningModel; transformers' own annotation only allows its own classes

    def __init__(
        self,
        model: PTuningModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        device: int | str | torch.device | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        **options: Any,
    ) -> None:
        _check(options)  # before transformers drops the options of other pipelines
        self._tokenise = Tokenise.for_model(model, tokenizer=tokenizer)
        super().__init__(  # type: ignore[no-untyped-call]
            model=model,
            tokenizer=self._tokenise.tokenizer,
            task="text-classification",
            device=device,
            batch_size=batch_size,
            num_workers=num_workers,
            **options,
        )

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Classify a text, a mapping with ``text`` and ``text_pair``, a list of them, or a data set's column.

        Args:
            inputs: As for transformers' pipeline; generators and ``KeyDataset`` are read lazily. Also a
                series or an array of texts.
            kwargs: Options of the pipeline for this call: ``batch_size``, ``top_k``, …

        Returns:
            As transformers' pipeline: a list with one ``{"label": …, "score": …}`` for a text, a single one
            for a mapping, a list for a list; with ``top_k``, a list of them per text.

        Raises:
            ConfigError: a pair for a single-text task, or the other way round; an unknown option.
            DataError: a blank text.
            TrainingDiverged: logits that are not finite.
        """
        if (column := texts_of(inputs)) is not None:
            inputs = column  # a series or an array
        elif is_table(inputs) and not isinstance(inputs, list | Mapping):
            raise ConfigError(
                "the input",
                got=f"a {type(inputs).__name__}",
                expected="texts",
                remedy="pass its column of texts, or a list of mappings with 'text' and, for a pair, "
                "'text_pair'",
            )
        if isinstance(inputs, Sized) and not isinstance(inputs, str | Mapping) and not len(inputs):
            return []  # transformers would fail on the first item
        if isinstance(inputs, Sequence) and not isinstance(inputs, str | list | tuple):
            inputs = list(
                inputs
            )  # a column of a ``datasets.Dataset``, which transformers would treat as one text
        return super().__call__(inputs, *args, **kwargs)

    def check_model_type(self, supported_models: Any) -> None:
        """Nothing to check: transformers would compare class names, and this model always classifies."""

    def get_inference_context(self) -> Any:
        return torch.inference_mode

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the frozen weights; prompt and head are fp32."""
        found: torch.dtype = self.model.backbone.dtype
        return found

    def __repr__(self) -> str:
        task = self.model.task
        return (
            f"{type(self).__name__}({self.model.backbone.name!r}, {task.problem_type}, "
            f"num_labels={task.num_labels}, device={str(self.device)!r})"
        )

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write the adapter folder: see ``PTuningModel.save_pretrained``."""
        self.model.save_pretrained(save_directory, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Push the adapter to the Hub: see ``PTuningModel.push_to_hub``."""
        return self.model.push_to_hub(repo_id, **kwargs)

    # ------------------------------------------------------------------------- the pipeline's steps

    def _sanitize_parameters(self, function_to_apply: Any = None, top_k: Any = _UNSET, **options: Any) -> Any:
        _check({**options, "function_to_apply": function_to_apply, "top_k": top_k})
        named = function_to_apply is not None and function_to_apply.lower() != "default"
        parameters: Any = super()._sanitize_parameters(  # type: ignore[no-untyped-call]
            function_to_apply.lower() if named else None, top_k, **options
        )
        if function_to_apply is not None and not named:  # resets the pipeline's own setting
            parameters[2]["function_to_apply"] = None
        return parameters

    def preprocess(self, inputs: Any, **tokenizer_kwargs: Any) -> Any:  # type: ignore[override]
        text, text_pair = _texts(inputs, self.model.task)
        options = {"truncation": "longest_first", "max_length": self._tokenise.limit, **tokenizer_kwargs}
        if options["truncation"] in (None, False, "do_not_truncate"):
            options["max_length"] = tokenizer_kwargs.get("max_length")  # still read by padding="max_length"
        elif options["max_length"] is None:
            options["truncation"] = False  # no limit is known
        with TOKENIZER:
            encoded: Any = super().preprocess(
                {"text": text, "text_pair": text_pair}, return_attention_mask=True, verbose=False, **options
            )
        if self._tokenise.places:
            # Padding has to be -1, and transformers pads what it does not know with 0: see _forward().
            encoded["segment_ids"] = torch.tensor([segments_of(encoded.sequence_ids(0))]) + 1
        return encoded

    def _forward(self, model_inputs: Any) -> Any:  # type: ignore[override]
        inputs = dict(model_inputs)
        if "segment_ids" in inputs:
            inputs["segment_ids"] = inputs["segment_ids"] - 1
        outputs = self.model.for_inference()(**inputs)  # no other thread sees the mode change
        check_finite(outputs["logits"], lambda at: f"row {at + 1} of the batch")
        return outputs

    def postprocess(  # type: ignore[override]
        self, model_outputs: Any, function_to_apply: Any = None, **options: Any
    ) -> Any:
        """Scores of labels, with the task's temperature; of a task without labels, the number that it
        answers. ``function_to_apply="none"`` gives the logits themselves.
        """
        task, logits = self.model.task, model_outputs["logits"]
        if function_to_apply is None:
            function_to_apply = DEFAULTS[task.kind.form]
            if task.kind.form is LabelForm.NUMBER:
                answer = task.kind.answer(logits[0].tolist(), task)
                model_outputs = {"logits": logits.new_tensor([[answer.label]])}
        if function_to_apply != ClassificationFunction.NONE and task.temperature != 1:
            model_outputs = {**model_outputs, "logits": logits / task.temperature}
        return super().postprocess(  # type: ignore[no-untyped-call]
            model_outputs, function_to_apply, **options
        )


class WindowsPipeline(ChunkPipeline, PTuningPipeline):
    """The pipeline of a task that reads texts that are too long in windows. Each window is a chunk."""

    def preprocess(self, inputs: Any, **tokenizer_kwargs: Any) -> Any:  # type: ignore[override]
        """Yield the windows of a text, or the text as the options cut it.

        Raises:
            ConfigError: options of the tokenizer that are for entire texts.
        """
        if "truncation" in tokenizer_kwargs or "max_length" in tokenizer_kwargs:
            yield {**super().preprocess(inputs, **tokenizer_kwargs), "is_last": True}
            return
        if tokenizer_kwargs:
            raise ConfigError(
                f"the option {next(iter(tokenizer_kwargs))!r} is not for a task that reads texts in windows",
                remedy="leave it out, or cut the texts with truncation=True",
            )
        text, text_pair = _texts(inputs, self.model.task)
        (row,) = self._tokenise([Example(row=1, text=text, text_b=text_pair)])
        for number, window in enumerate(windows := windows_of([row]), start=1):
            encoded = collate([window], pad_id(self.model))
            if "segment_ids" in encoded:
                encoded["segment_ids"] = encoded["segment_ids"] + 1
            yield {**encoded, "is_last": number == len(windows)}

    def _forward(self, model_inputs: Any) -> Any:  # type: ignore[override]
        inputs = dict(model_inputs)
        last = inputs.pop("is_last")
        return {"logits": super()._forward(inputs)["logits"], "is_last": last}

    def postprocess(  # type: ignore[override]
        self, model_outputs: Any, function_to_apply: Any = None, **options: Any
    ) -> Any:
        """As for a text in one window, from the mean of the windows' logits."""
        together = torch.cat([each["logits"] for each in model_outputs])
        found = {"logits": mean_of_windows(together, [len(together)])}
        return super().postprocess(found, function_to_apply, **options)


def _texts(inputs: Any, task: Task) -> tuple[str, str | None]:
    """The text, or both of a pair, of one input."""
    given = inputs
    if isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], list) and len(inputs[0]) == 2:
        inputs = dict(
            zip(("text", "text_pair"), inputs[0], strict=True)
        )  # an old form that transformers keeps
    elif isinstance(inputs, str):
        inputs = {"text": inputs}
    if (
        not isinstance(inputs, Mapping)
        or not {"text"} <= set(inputs) <= {"text", "text_pair"}
        or not isinstance(inputs["text"], str)
        or not isinstance(inputs.get("text_pair"), str | None)
    ):
        raise ConfigError(
            "the input",
            got=shortened(given),
            expected="a string, or a mapping with the strings 'text' and, for a pair, 'text_pair'",
            remedy="pass several as a list",
        )
    text, text_pair = inputs["text"], inputs.get("text_pair")
    if (text_pair is not None) != task.pair:
        one, two = "one text", "two texts"
        raise ConfigError(
            "the input",
            got=f"{one if task.pair else two} ({shortened(given)})",
            expected=f"{two if task.pair else one}, as in training",
            remedy='pass {"text": …, "text_pair": …}' if task.pair else "pass only the text",
        )
    refuse_blank("the input", text, text_pair)
    return text, text_pair


def _check(options: Mapping[str, Any]) -> None:
    """Refuse options that transformers would ignore or fail on."""
    known = ("batch_size", "num_workers", "top_k", "function_to_apply", *TOKENIZER_OPTIONS)
    for name in options:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = "top_k=None gives every label" if name == "return_all_scores" else None
            raise ConfigError(
                f"the option {name!r} is unknown, expected one of {listing(known)}; "
                + (hint or (f"did you mean {close[0]!r}?" if close else "leave it out"))
            )
    function, top_k = options.get("function_to_apply"), options.get("top_k", _UNSET)
    if function is not None and (not isinstance(function, str) or function.lower() not in FUNCTIONS):
        raise ConfigError(
            "function_to_apply",
            got=repr(function),
            expected=f"one of {listing(FUNCTIONS)}",
            remedy="leave it out to use the one for the task",
        )
    if top_k == _UNSET or top_k is None:
        return
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise ConfigError(
            "top_k", got=repr(top_k), expected="a whole number of at least 1, or None for every label"
        )
