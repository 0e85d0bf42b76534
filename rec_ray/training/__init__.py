"""Train the two towers with Ray Train: trainer on the driver, worker, shard of the timelines, checkpoints."""
