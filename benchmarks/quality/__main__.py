"""Run the study: ``make quality``, or ``PYTHONPATH=benchmarks python -m quality``."""

from quality.study import main

if __name__ == "__main__":
    main()
