"""Models: adapters, hook capture, which rows to keep, and the pump from device to store."""

if __name__ != "thresher.harvest":
    raise ImportError("import thresher.harvest: the folder harvest/ is part of the package thresher")
