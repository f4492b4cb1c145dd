"""`python -m lightning_dpo.benchmark`: the cost of a training step in each layout and of other trainers' algorithms."""
