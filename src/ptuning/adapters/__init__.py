"""Trained tasks on disk: save, load, verify, PEFT's formats, the Hub, the model card.

``ptuning.model`` uses this package to save models. The package deals with files, JSON and tensors only, and
does not import ``ptuning.model`` except for the prompt's configuration.
"""

from ptuning.adapters.calibrated import recalibrated
from ptuning.adapters.card import SPLIT_OFF, finite_numbers, model_card, started_from
from ptuning.adapters.folder import (
    OWN_FILES,
    RECORD,
    check_destination,
    details,
    is_adapter,
    is_whole,
    load,
    save,
    verify,
    version,
)
from ptuning.adapters.hub import hub_out_of_reach, locate, push
from ptuning.adapters.peft_format import (
    NO_CACHE,
    WRITTEN_BY_US,
    for_peft,
    from_peft,
    left_out_for_peft,
    modules_to_save,
    to_peft,
    unpack_layers,
    why_not_peft,
)
from ptuning.adapters.peft_import import OPTIONS as PEFT_OPTIONS
from ptuning.adapters.peft_import import is_peft, peft_config
from ptuning.adapters.record import MIX, Adapter, ClozeTokens, output_layer

__all__ = [
    "MIX",
    "NO_CACHE",
    "OWN_FILES",
    "PEFT_OPTIONS",
    "RECORD",
    "SPLIT_OFF",
    "WRITTEN_BY_US",
    "Adapter",
    "ClozeTokens",
    "check_destination",
    "details",
    "finite_numbers",
    "for_peft",
    "from_peft",
    "hub_out_of_reach",
    "is_adapter",
    "is_peft",
    "is_whole",
    "left_out_for_peft",
    "load",
    "locate",
    "model_card",
    "modules_to_save",
    "output_layer",
    "peft_config",
    "push",
    "recalibrated",
    "save",
    "started_from",
    "to_peft",
    "unpack_layers",
    "verify",
    "version",
    "why_not_peft",
]
