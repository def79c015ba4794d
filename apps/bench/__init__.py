"""Quality of the parts, measured on canvas; each writes a measurement file."""
