"""Feast, both directions: point-in-time joins, offline sources, push targets."""
