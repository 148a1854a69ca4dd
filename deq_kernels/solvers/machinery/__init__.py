"""What the methods share: the loop, the bookkeeping of samples, and vectors kept per sample."""
