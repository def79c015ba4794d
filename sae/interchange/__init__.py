"""Folders of dictionaries: ``folder.py`` writes and reads them as sae-lens does, ``interop.py`` those of others."""
