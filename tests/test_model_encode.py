"""Hidden states with the prompt in place: transformers' own, in the caller's order of tokens."""

from __future__ import annotations

import pytest
import torch

from ptuning.model import DeepPrompt, InputPrompt, PTuningModel
from ptuning.model.native_heads import NativeHead
from tiny import CASES, ragged, tiny_case

P = 4
LENGTHS = [5, 9, 3]


def made(case: str, config: DeepPrompt | InputPrompt) -> PTuningModel:
    return PTuningModel.from_backbone(tiny_case(case), config, num_labels=3).eval()


@pytest.mark.parametrize("case", CASES)
def test_the_head_on_what_is_encoded_gives_the_logits(case: str) -> None:
    """Heads that read the first or the last token; it also shows that nothing follows the final norm."""
    config = InputPrompt(num_virtual_tokens=P, placement="front", train_head=False)
    model = made(case, config)
    left = model.backbone.architecture.causal
    ids, mask = ragged(LENGTHS, left=left)
    with torch.no_grad():
        states, logits = model.encode(ids, mask), model(ids, mask).logits
        if left:
            expected = model.backbone.model.score(states[:, -1])
        elif model.backbone.reads_first_token and hasattr(model.backbone.model, "classifier"):
            expected = NativeHead(model.backbone.model)(states[:, 0], mask)
        else:
            pytest.skip("its head reads all tokens, the prompt's included")
    torch.testing.assert_close(logits, expected.float(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("case", ["bert", "modernbert", "deberta-v2", "gpt2", "llama", "opt"])
def test_a_token_has_the_same_states_wherever_it_stands(case: str, side: str) -> None:
    for config in (
        DeepPrompt(num_virtual_tokens=P, first_layer=1, num_virtual_units=2, pooling="mean"),
        InputPrompt(num_virtual_tokens=P, placement="start"),
    ):
        model = made(case, config)
        ids, mask = ragged(LENGTHS, left=side == "left")
        with torch.no_grad():
            together = model.encode(ids, mask)
            assert together.shape[:2] == ids.shape
            for row in range(len(LENGTHS)):
                real = mask[row].bool()
                alone = model.encode(ids[row : row + 1, real])
                torch.testing.assert_close(together[row, real], alone[0], rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    "case", ["bert", "roberta", "modernbert", "distilbert", "deberta-v2", "gpt2", "gemma2"]
)
def test_with_an_input_prompt_they_are_transformers_own(case: str) -> None:
    model = made(case, InputPrompt(num_virtual_tokens=P, placement="start"))
    plain = tiny_case(case).eval()
    ids, _ = ragged([7])
    with torch.no_grad():
        joined = torch.cat((model.prompt_encoder()[None], plain.get_input_embeddings()(ids)), dim=1)
        expected = plain.base_model(
            inputs_embeds=joined, attention_mask=torch.ones(joined.shape[:2], dtype=torch.long)
        ).last_hidden_state[:, P:]
        torch.testing.assert_close(model.encode(ids), expected, rtol=0, atol=5e-6)
