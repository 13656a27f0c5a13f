"""Rewards: a learned reward model, and a task's own verifier."""
