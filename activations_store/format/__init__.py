"""The format (docs/store-format.md): specifications, folders, chunk grids, commit records, tables, shard files."""
