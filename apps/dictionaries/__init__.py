"""Dictionaries from the command line: trained in grids and processes, evaluated, put in place of what they explain."""
