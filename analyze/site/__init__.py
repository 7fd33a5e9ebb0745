"""A static site to look at an analysis: opens from disk, reads nothing from outside."""
