"""Trials that try to break ptuning: kills, damage, odd numbers and files, full disks, signals, threads.

A campaign is a module with ``lines(lab, draw)``, which gives :class:`~torture.trials.Line` objects: many
trials of one kind, each of which says what counts as held. ``__main__`` runs them and keeps the figures.
"""
