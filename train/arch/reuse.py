"""What a method derives from a dictionary, kept while the dictionary stays the same."""

import torch
from torch import Tensor

from thresher.train.kernels import Method, Prepared, prepare


class LastPrepared:
    """The last result of `prepare`: given again while dictionary and method are the same, or its memory used again.

    The dictionary is compared with a copy, number by number, so that no way of changing it goes unnoticed (a version
    counter misses writes through `.data`): one pass over it, little beside a pass over a batch. What `find` gave is never
    written to, so that several threads may encode with one owner. Copies and pickles of the owner start empty.
    """

    def __init__(self) -> None:
        self._found: Prepared | None = None
        """Made by `find`, from a copy."""
        self._renewed: Prepared | None = None
        """Made by `renew`, perhaps from a dictionary that has changed since: good for its memory only."""

    def find(self, dictionary: Tensor, method: Method) -> Prepared:
        """What `prepare` gives for a dictionary that may be the same as last time; derived anew only if it is not."""
        dictionary = dictionary.detach().to(torch.promote_types(dictionary.dtype, torch.float32))
        found = self._found
        if found is not None and found.method == method and _is_same(found.dictionary, dictionary):
            return found
        # Freed before the new one is made: two at once would double the peak.
        found = self._found = self._renewed = None
        # What is prepared in inference mode must also serve where gradients are wanted.
        with torch.inference_mode(mode=False):
            found = prepare(dictionary.clone(memory_format=torch.contiguous_format), method)
        self._found = found
        return found

    def renew(self, dictionary: Tensor, method: Method) -> Prepared:
        """What `prepare` gives for a dictionary that is about to change: nothing is copied, and `find` will not find it.

        Writes over what the last call gave.
        """
        reuse, self._found, self._renewed = self._renewed, None, None
        # On a GPU torch keeps freed memory at hand by itself.
        fits = reuse is not None and reuse.method == method and reuse.dictionary.shape == dictionary.shape
        if not fits or dictionary.device.type != "cpu":
            reuse = None
        with torch.inference_mode(mode=False):
            renewed = self._renewed = prepare(dictionary.detach(), method, reuse=reuse)
        return renewed

    def __getstate__(self) -> dict[str, object]:
        return {"_found": None, "_renewed": None}


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
