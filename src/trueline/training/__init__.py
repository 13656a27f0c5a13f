"""Training: one page per method. A page is a module with `Config` and `train(config, stage)`; pages are discovered."""
