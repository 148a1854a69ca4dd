"""One training step of whole models, forward and backward apart, against torchdeq."""
