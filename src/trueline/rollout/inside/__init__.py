"""What runs inside a vLLM worker, alone in its environment."""
