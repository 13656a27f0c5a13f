"""Speed and memory, measured: the same work on our side and on a peer's, in turn, with equal results shown."""
