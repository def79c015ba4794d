"""Finding directions from the command line: what each method needs, and what it costs."""
