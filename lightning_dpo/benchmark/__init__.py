"""`python -m lightning_dpo.benchmark`: what a step costs in each layout, and beside other trainers' algorithms."""
