"""How fast many tasks on one backbone are served, beside what else there is: ``make bench-serving``."""
