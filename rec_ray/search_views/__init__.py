"""Vectors of items for feature views that are searched by text or image."""
