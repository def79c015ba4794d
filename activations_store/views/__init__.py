"""Reading: selections, one site as a lazy array, statistics of its rows, xarray."""
