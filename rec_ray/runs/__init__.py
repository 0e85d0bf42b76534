"""A run: its context, ledger, status, metrics and summary."""
