"""A Ray cluster of two nodes with one core each, on this machine, for tests.

Use it as a fixture: ``from ray_cluster import ray_cluster  # noqa: F401``. It has a temporary folder of its
own and ends with the module.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

MEMORY = 200_000_000
"""Bytes of each node's object store."""


@contextmanager
def cluster(nodes: int = 2, **options: Any) -> Iterator[Any]:
    """A ``ray.cluster_utils.Cluster``, which this process is connected to.

    Its head has no core: work runs on the other nodes, so that each of them may be killed.

    Args:
        nodes: How many nodes with one core there are.
        options: Of each of these nodes, as ``ray start`` has them.
    """
    folder = tempfile.mkdtemp(prefix="pt-ray-")  # short: the paths of its sockets may have 107 bytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_gcs_server_port_wait_time_s", "120")  # next to other work
        # workers are started in a folder of their own, and import what this process imports
        patch.setenv(
            "PYTHONPATH",
            os.pathsep.join(filter(None, [os.path.dirname(__file__), os.environ.get("PYTHONPATH")])),
        )
        import ray
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": MEMORY}
        made = Cluster()
        try:
            made.add_node(**head)
            for _ in range(nodes):
                made.add_node(num_cpus=1, object_store_memory=MEMORY, **options)
            patch.setenv("RAY_ADDRESS", made.address)
            ray.init(made.address, log_to_driver=False, logging_level="ERROR")
            yield made
        finally:
            ray.shutdown()
            made.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """Two nodes with one core each, and a head without any."""
    pytest.importorskip("ray")
    with cluster() as made:
        yield made
