"""The arithmetic of dictionaries: sparse codes, the encoder product, which features are on, and one training step.

Knows no architecture and no store. Read ``sparse.py`` first, then ``step.py``.
"""
