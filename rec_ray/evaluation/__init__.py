"""Measure a model on held-out events, compare it with counting baselines, and decide whether it may be published."""
