"""Dictionaries: architectures, pursuit kernels, the one training loop, checkpoints."""

if __name__ != "thresher.train":
    raise ImportError("import thresher.train: the folder train/ is part of the package thresher")
