"""Bulk scoring, searches and serving on a Ray cluster (extra ``ptuning[ray]``)."""
