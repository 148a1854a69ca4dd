"""Training a model on a dataset, with checkpoints, metrics and plots in one folder."""
