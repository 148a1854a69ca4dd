"""Datasets: bundled ones, and the real formats of others, read from disk."""

from deq_kernels.data.cifar import load_cifar10
from deq_kernels.data.digits import load_digits
from deq_kernels.data.image_folder import load_image_folder
from deq_kernels.data.split import Split, Splits

__all__ = ["Split", "Splits", "load_cifar10", "load_digits", "load_image_folder"]
