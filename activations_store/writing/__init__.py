"""Writing: a store made or joined, arrays checked on their way in, whole shards committed, leftovers removed."""
