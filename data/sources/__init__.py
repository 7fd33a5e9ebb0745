"""Inputs: image-caption pairs, images, texts, and the built-in scenes world."""
