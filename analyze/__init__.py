"""Measurements on stores and checkpoints: statistics, metrics, figures, the report."""

if __name__ != "thresher.analyze":
    raise ImportError("import thresher.analyze: the folder analyze/ is part of the package thresher")
