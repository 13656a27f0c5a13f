"""Experiments as lists of rows: ablations, distribution shift, the map, the findings; each with its page."""
