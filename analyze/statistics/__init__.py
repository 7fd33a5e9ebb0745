"""Sufficient statistics of the codes of both modalities: summed once, in blocks; every measure is a closed form of them."""
