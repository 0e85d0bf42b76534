"""From the feature store to encoded timelines."""
