"""Ray: its start, caches in workers, Parquet read by tasks."""
