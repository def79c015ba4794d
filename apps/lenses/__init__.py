"""``denoscope lens``: lenses asked from the command line, and their sheets."""
