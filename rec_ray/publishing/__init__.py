"""Push a stored version to Feast, commit it, roll back, prune."""
