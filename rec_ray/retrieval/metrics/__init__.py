"""Held-out events, rankers, metrics of rankings, segments and counting baselines."""
