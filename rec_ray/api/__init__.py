"""Python API: `Recommender` for stored versions, and `fit` for tables in memory."""
