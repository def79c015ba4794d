"""``denoscope demo``: collect, train, find, unlearn, steer, score, report."""
