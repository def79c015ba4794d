"""Unlearning from the command line: settings, methods by name, edits of a run, audits."""
