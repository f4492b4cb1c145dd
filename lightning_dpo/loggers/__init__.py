"""Where logged numbers go: metrics.csv and Weights & Biases."""
