"""Tests of what a dictionary does: behaviour with reconstructions and without features, steering, probes, retrieval, names."""
