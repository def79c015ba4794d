"""Shuffled rows for training: the order of rows, the loader, how well it mixes, tensors."""
