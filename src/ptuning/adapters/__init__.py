"""Trained tasks on disk: save, load, verify, PEFT's formats, the Hub, the model card.

Below ``ptuning.model``, which saves itself through here: this package knows files, JSON and tensors, and
no backbone.
"""

from ptuning.adapters.card import model_card
from ptuning.adapters.folder import check_destination, details, is_adapter, load, save, verify
from ptuning.adapters.hub import hub_out_of_reach, locate
from ptuning.adapters.peft_format import NO_CACHE, from_peft, to_peft, why_not_peft
from ptuning.adapters.record import Adapter

__all__ = [
    "NO_CACHE",
    "Adapter",
    "check_destination",
    "details",
    "from_peft",
    "hub_out_of_reach",
    "is_adapter",
    "load",
    "locate",
    "model_card",
    "save",
    "to_peft",
    "verify",
    "why_not_peft",
]
