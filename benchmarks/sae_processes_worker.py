"""One process of `benchmarks.sae_processes`: `python -m benchmarks.sae_processes_worker SHAPE MODE STEPS`."""

import sys

from benchmarks.sae_processes import work

print(work(sys.argv[1], sys.argv[2], int(sys.argv[3])))
