"""``python -m ptuning``."""

from __future__ import annotations

from ptuning.cli import console

if __name__ == "__main__":
    console()
