"""The two towers, the bundle in which they are stored, and inference."""
