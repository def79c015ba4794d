"""Whole stores: checked, merged and cut, copied, exported."""
