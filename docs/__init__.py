"""Documents, and the script that fills their numbers."""
