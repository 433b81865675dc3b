"""Trained weights as files, and those that are shipped; see `file.py`."""
