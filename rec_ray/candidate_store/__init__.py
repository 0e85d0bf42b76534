"""Candidates stored under a version: manifest, parts, increments."""
