"""What the methods share: evaluations of f, the loop, its end, and vectors kept per sample."""
