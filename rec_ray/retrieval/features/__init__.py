"""From columns to encoded features: preprocessing, timelines, catalogue."""
