"""Loggers: metrics.csv and Weights & Biases."""
