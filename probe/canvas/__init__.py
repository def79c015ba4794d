"""canvas: a procedural image world with four known factors (object, style, colour, background)."""
