"""The report of a version: terminal, HTML page, comparison with the live version."""
