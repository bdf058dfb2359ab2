"""Inserts a prompt in the middle of the text, with your own training loop.

A common notebook embeds the tokens twice; this does not. The notebook calls
``bert.embeddings(input_ids)`` and passes the result as ``inputs_embeds``. BERT then adds positions and
segments, and normalises, a second time. Here the prompt is inserted between *word* embeddings, in the
middle of each row's own tokens (padding does not count), and the rest is added once. All backbone
weights stay frozen.

Offline on the embedded MiniLM, or on bert-base-uncased from the Hub::

    python examples/prompt_in_the_middle.py
    python examples/prompt_in_the_middle.py --online
"""

from __future__ import annotations

import argparse
from typing import cast

import torch
from torch.optim import AdamW
from torch.utils.data import DataLoader, Dataset

from ptuning import EmbeddingEncoder, InputPrompt, PTuningModel
from ptuning.data import Example
from ptuning.data.tokens import Tokenise, TokenRow, collate
from ptuning.inference.evaluate import pad_id

TEXTS = {
    "This is a positive example.": 1,
    "This is a negative example.": 0,
    "What a lovely afternoon, I could not be happier with it.": 1,
    "The soup was cold and the waiter could not have cared less.": 0,
    "A warm, funny film that I would gladly watch again.": 1,
    "Two hours of my life that nobody will give me back.": 0,
    "It arrived a day early and works better than the old one.": 1,
    "The handle snapped off the first time I picked it up.": 0,
    "Kind people, clean rooms, and a breakfast worth getting up for.": 1,
    "Damp sheets, thin walls, and a smell I would rather forget.": 0,
    "Every song on this record is a small delight.": 1,
    "The plot makes no sense and the jokes are worse.": 0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--online", action="store_true", help="bert-base-uncased, from the Hub")
    parser.add_argument("--epochs", type=int, default=30, help="the notebook's 3 are too few")
    parser.add_argument(
        "--rate", type=float, default=3e-2, help="learning rate; the notebook's 1e-5 is too low"
    )
    given = parser.parse_args()

    torch.manual_seed(0)
    prompt = InputPrompt(
        placement="middle", num_virtual_tokens=10, encoder=EmbeddingEncoder(), train_head=False
    )
    model = PTuningModel.from_backbone("bert-base-uncased" if given.online else "demo", prompt, num_labels=2)
    model.print_trainable_parameters()
    print(f"trained: {list(model.task_parameters())}")

    tokenise = Tokenise.for_model(model)
    rows = tokenise([Example(row=i, text=text) for i, text in enumerate(TEXTS, 1)], list(TEXTS.values()))
    loader: DataLoader[TokenRow] = DataLoader(
        cast("Dataset[TokenRow]", rows),
        batch_size=4,
        shuffle=True,
        collate_fn=lambda part: collate(part, pad_id(model)),
    )
    optimizer = AdamW(model.task_parameters().values(), lr=given.rate)

    for epoch in range(given.epochs):
        model.train()
        losses = []
        for batch in loader:
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"Epoch {epoch + 1}, Loss: {sum(losses) / len(losses):.4f}")

    model.eval()
    with torch.no_grad():
        batch = collate(rows, pad_id(model))
        predictions = model(batch["input_ids"], batch["attention_mask"]).logits.argmax(1)
    print(f"Predictions: {predictions.tolist()}, Labels: {batch['labels'].tolist()}")


if __name__ == "__main__":
    main()
