"""One model on its datasets per module, as the training loop sees it."""
