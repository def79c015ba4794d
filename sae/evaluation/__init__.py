"""What dictionaries know: reconstruction (``metrics.py``), concepts (``concepts.py``, ``recovery.py``), stability over
seeds, and the bundle of features that the dashboard shows.
"""
