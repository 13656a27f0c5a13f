"""The run directory: cells, budget meter, checkpoints."""
