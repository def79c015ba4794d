"""``denoscope bench unlearn``: every method on every concept, in stages and processes. Read ``bench.py`` first."""
