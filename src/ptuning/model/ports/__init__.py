"""Attention ports: the ways for a deep prompt to reach an architecture's attention, and what each can do.

``interface.py`` uses transformers' attention interface; ``replaced.py`` is for architectures whose attention
stays outside it (DeBERTa-v2); ``context.py`` is for layers that hand nothing on to it (StableLM);
``cache.py`` hands the prompt over as a key/value cache (BLOOM). A row of
:data:`~ptuning.model.architectures.ARCHITECTURES` names the port.
"""

from __future__ import annotations

from collections.abc import Mapping

from ptuning.model.ports.cache import CachePort
from ptuning.model.ports.context import ContextPort
from ptuning.model.ports.interface import InterfacePort
from ptuning.model.ports.port import AttentionPort, Capabilities
from ptuning.model.ports.replaced import ReplacedPort

PORTS: Mapping[str, AttentionPort] = {
    "interface": InterfacePort(),
    "context": ContextPort(),
    "replaced": ReplacedPort(),
    "cache": CachePort(),
}
"""By the name that an architecture's ``attention`` has. They have no state."""

__all__ = [
    "PORTS",
    "AttentionPort",
    "CachePort",
    "Capabilities",
    "ContextPort",
    "InterfacePort",
    "ReplacedPort",
]
