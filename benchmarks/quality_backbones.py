"""The quality study on an encoder of 109M and a decoder of 268M: ``make quality-backbones``.

    PTUNING_DATA=... python benchmarks/quality_backbones.py [--list] [--jobs 2] [--datasets gemma/sst2-100]
        [--methods default full] [--seeds 0 1 2] [--limit-minutes 60]

``make backbones`` makes the backbones, ``make quality-elsewhere`` the newsgroups. The rest is as in
``quality.study``: each run is a process on one thread and a line of the results, what is there is not done
again, and rates are picked on validation rows.
"""

from __future__ import annotations

from quality.plan import TRAVELLED
from quality.records import BACKBONES
from quality.study import main

if __name__ == "__main__":
    main(datasets=tuple(TRAVELLED), results=BACKBONES)
