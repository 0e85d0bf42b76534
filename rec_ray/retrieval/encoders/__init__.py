"""Pretrained encoders of texts and images."""
