"""The transformer of a backbone for one forward pass: rows → hidden states → readout → logits.

Shapes: B rows, S tokens, L layers, H hidden size, E embedding size, P virtual tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ptuning.errors import UnsupportedBackbone
from ptuning.model import views
from ptuning.model.backbone import Backbone
from ptuning.model.layer_parts import LayerPart, Record, StopAt
from ptuning.model.layers import ForwardPass
from ptuning.model.native_heads import LinearHead, NativeHead, ReadHead
from ptuning.model.readout import AtPlaces, EveryToken, FirstToken, LastToken, Readout
from ptuning.model.rows import Rows
from ptuning.model.verbalizer import ClozeScores, Verbalizer


class Encoder:
    """A backbone's model with a task's parameters in place of its own, for one forward pass.

    The backbone is not written to, so any number of threads can run passes at the same time.

    Args:
        backbone: The task's view of the frozen model.
        values: Parameters in place of the model's, by name: the task's head.
        verbalizer: A cloze head's words; ``None`` for the architecture's own head.
    """

    def __init__(
        self,
        backbone: Backbone,
        values: Mapping[str, Tensor] | None = None,
        verbalizer: Verbalizer | None = None,
    ) -> None:
        self.backbone, self.verbalizer = backbone, verbalizer
        self.model: Any = views.placed(backbone.model, values or {}, backbone.private)

    def logits(self, rows: Rows, parts: Sequence[LayerPart] = (), readout: Readout | None = None) -> Tensor:
        """``[B, C]``: encode, read, classify.

        Args:
            rows: The rows.
            parts: What happens in the layers.
            readout: What the head reads; by default what it was made for, or the rows' own place.
        """
        if rows.read is not None:
            readout = AtPlaces(rows.read)
        readout = readout or self.native_readout()
        read = readout.read(self.encode(rows, (*parts, readout)))
        return self.head(read if readout.is_final else self.finish(read), rows.attention_mask)

    def encode(self, rows: Rows, parts: Sequence[LayerPart] = ()) -> Tensor:
        """``[B, S, H]``: the last layer's output, before any final norm; ``[B, 1, H]`` if a part asks for one
        token only.
        """
        forward_pass = self._pass(parts)
        inputs = self.inputs(rows)
        with self._under_way(forward_pass, inputs):
            out = self.model.base_model(**inputs)
        if not self.backbone.port.can.layers:
            found: Tensor = out.last_hidden_state
            return found
        forward_pass.check_read(type(self.model).__name__)
        assert forward_pass.states is not None  # every layer was asked
        return forward_pass.states

    def finish(self, hidden: Tensor) -> Tensor:
        """``[…, H]``: what the transformer applies behind its last layer: a norm, or nothing."""
        if not self.backbone.port.can.layers:
            return hidden  # the transformer has run to its end
        for name in self.backbone.architecture.final:
            if self.backbone.has_module(name):
                hidden = self.model.base_model.get_submodule(name)(hidden)
        return hidden

    @property
    def head(self) -> ReadHead:
        """The architecture's own head, with the task's parameters; or the scores of a cloze head's words."""
        if self.verbalizer is not None:
            return ClozeScores(self.verbalizer, self.backbone.language_head)
        causal = self.backbone.architecture.causal
        return LinearHead(self.model.score) if causal else NativeHead(self.model)

    def native_readout(self) -> Readout:
        """What the architecture's own head reads."""
        if self.backbone.architecture.causal:
            return LastToken()
        if self.backbone.reads_first_token:
            return FirstToken(cut=self.backbone.attends_once)
        return EveryToken()

    def stem(self, rows: Rows, first_layer: int) -> Tensor:
        """``[B, S, H]``: the hidden states that enter layer ``first_layer``.

        They depend on the frozen weights and the text alone: there is no gradient, and they can be kept.
        """
        stop = StopAt(first_layer)
        inputs = self.inputs(rows)
        # In the precision of the weights, so that the result does not depend on the caller's autocast.
        exact = torch.autocast(self.backbone.device.type, enabled=False)
        with torch.no_grad(), exact, self._under_way(self._pass((stop,)), inputs):
            self.model.base_model(**inputs)
        assert stop.entered is not None  # every architecture with a stem asks all its layers
        return stop.entered

    def leading(self, inputs_embeds: Tensor) -> Tensor:
        """``[L, 2, P, H_kv]``: in every layer the keys and values of a prompt ``[P, E]`` before any text.

        In a decoder nothing behind them changes them: they are computed once for all rows.
        """
        record = Record()
        places = torch.arange(len(inputs_embeds), device=inputs_embeds.device)[None]
        rows = Rows(
            inputs_embeds=inputs_embeds[None], attention_mask=torch.ones_like(places), positions=places
        )
        inputs = self.inputs(rows)
        with self._under_way(self._pass((record,)), inputs):
            self.model.base_model(**inputs)
        if len(record.recorded) != self.backbone.num_layers:
            raise UnsupportedBackbone(
                f"{type(self.model).__name__} showed the keys and values of {len(record.recorded)} of its "
                f"{self.backbone.num_layers} layers: its attention does not use transformers' attention "
                "interface",
                remedy="set engine.shared_prompt to false",
            )
        # Each layer's keys and values are [1, h_kv, P, d].
        return torch.stack(
            [
                torch.stack([states[0].transpose(0, 1).flatten(1) for states in keys_values])
                for keys_values in record.recorded
            ]
        )

    def inputs(self, rows: Rows) -> dict[str, Any]:
        """The transformer's keyword arguments."""
        backbone = self.backbone
        mask, first = rows.attention_mask, backbone.first_position
        inputs: dict[str, Any] = {
            "input_ids": rows.input_ids,
            "inputs_embeds": rows.inputs_embeds,
            "attention_mask": mask,
        }
        if backbone.architecture.takes_positions:
            inputs["position_ids"] = (rows.positions + first) * mask + (1 - mask) * max(first - 1, 0)
        if backbone.uses_segments and rows.token_type_ids is not None:
            inputs["token_type_ids"] = rows.token_type_ids
        if backbone.architecture.causal:
            inputs["use_cache"] = False
        return inputs

    def _pass(self, parts: Sequence[LayerPart]) -> ForwardPass:
        backbone = self.backbone
        return ForwardPass(
            backbone.num_layers,
            parts,
            backbone.port,
            backbone.engine,
            same_length=backbone.architecture.same_length,
        )

    def _under_way(self, forward_pass: ForwardPass, inputs: dict[str, Any]) -> Any:
        backbone = self.backbone
        return backbone.port.under_way(forward_pass, forward_pass.parts, inputs, backbone.dtype)
