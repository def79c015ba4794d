"""``denoscope steer``: a push, its sweep of strengths, the response of the judge."""
