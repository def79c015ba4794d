"""Bytes on a disk or in object storage: safe paths, atomic files, locks, checked JSON. Knows nothing of activations."""
