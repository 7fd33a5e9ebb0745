"""Finished analyses side by side."""
