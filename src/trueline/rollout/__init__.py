"""Rollout: the engine protocol and its engines. A rollout carries tokens, log-probs, and why each response stopped."""
