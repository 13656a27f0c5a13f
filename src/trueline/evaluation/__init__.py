"""Evaluation: samples a policy and measures it. One sampler, one set of prompts, one KL for every arm."""
