"""One file for each sub-command: ``add_parser`` declares its options, ``run`` does the work and imports
what it needs.
"""
