"""Vectors of item texts and images, cached by content."""
