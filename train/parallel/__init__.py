"""Training by several processes: rows shared out, and dictionaries too large for one device split."""
