"""Inputs (`sources`) and the activation store (`store`), reading and writing."""

if __name__ != "thresher.data":
    raise ImportError("import thresher.data: the folder data/ is part of the package thresher")
