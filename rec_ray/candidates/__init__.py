"""Compute the top-k candidates of all users and all items with Ray Data."""
