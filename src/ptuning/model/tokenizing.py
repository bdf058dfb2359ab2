"""A tokenizer is asked by one thread at a time."""

from __future__ import annotations

from ptuning.threads import lock_over_forks

ONE_AT_A_TIME = lock_over_forks()
"""Held while a tokenizer is called.

How far it cuts is state of the tokenizer, which each call sets anew, and tasks on one backbone share it:
without this a text could be cut to the length of another thread's task.
"""
