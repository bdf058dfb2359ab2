"""Commands in several processes, as ``torchrun`` and ``accelerate launch`` start them: one of them talks."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from ptuning.errors import PTuningError, TrainingDiverged, UserError


def is_main() -> bool:
    """Whether this process prints results: it is the only one, or the first of all."""
    return "LOCAL_RANK" not in os.environ or os.environ.get("RANK", "0") == "0"


def left_to_launcher(error: PTuningError) -> bool:
    """Whether the launcher shows this error, because another process on this machine prints it.

    All processes find a mistake in the options or in the data, and the first on each machine prints it. What
    the others find goes into the launcher's summary, in case that it is theirs alone.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file is None or os.environ.get("LOCAL_RANK", "0") == "0":
        return False
    if not isinstance(error, UserError | TrainingDiverged):
        return False
    try:
        values = {"message": f"ptuning: error: {error}", "timestamp": int(time.time())}
        Path(file).write_text(json.dumps(values), encoding="utf-8")
    except OSError:
        return False
    return True
