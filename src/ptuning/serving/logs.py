"""Logs as JSON, one line each, on standard error."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback


class JsonLines(logging.Formatter):
    """Formats records as JSON. Those of requests are JSON already."""

    def format(self, record: logging.LogRecord) -> str:
        if record.name == "ptuning.access":
            return record.getMessage()
        facts = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info is not None and record.exc_info[0] is not None:
            facts["error"] = record.exc_info[0].__name__
            facts["trace"] = "".join(traceback.format_tb(record.exc_info[2]))  # its message may have a text
        return json.dumps(facts)


def log_to_stderr(*, requests: bool = True) -> None:
    """Write the logs of the server, and warnings of others, to standard error.

    Args:
        requests: Whether every request has a line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("ptuning").setLevel(logging.INFO)
    logging.getLogger("ptuning.access").setLevel(logging.INFO if requests else logging.WARNING)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    logging.captureWarnings(True)
