"""Prometheus metrics of the server, in a registry of their own. No label has values without a bound."""

from __future__ import annotations


class Metrics:
    """Counters, histograms and gauges.

    Args:
        max_tasks: Maximum tasks with a label of their own; the others are counted as ``other``.
    """

    def __init__(self, max_tasks: int = 200) -> None:
        self.max_tasks = max_tasks

    def request(self, *, task: str, route: str, code: int, seconds: float) -> None:
        """Count one HTTP request.

        Args:
            task: The task's name; ``""`` for a request without one, or with several.
            route: The route's template, such as ``/tasks/{task}``, never the path of a request.
        """
        raise NotImplementedError

    def render(self) -> tuple[bytes, str]:
        """The body and the content type for ``/metrics``."""
        raise NotImplementedError
