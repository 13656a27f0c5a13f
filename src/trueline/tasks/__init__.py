"""Tasks: prompts, demonstrations, pairs, reward, gold judge, splits; one file each."""
