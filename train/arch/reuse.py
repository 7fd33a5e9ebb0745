"""What a method derives from a dictionary, kept while the dictionary stays the same."""

import torch
from torch import Tensor

from thresher.train.kernels import Method, Prepared, prepare


class LastPrepared:
    """The last result of `prepare`: given again while dictionary and method are the same, its memory used again if not.

    The dictionary is compared with a copy, number by number, so that no way of changing it goes unnoticed (a version
    counter misses writes through `.data`): one pass over it, little beside a pass over a batch. Copies and pickles of the
    owner start empty.
    """

    def __init__(self) -> None:
        self._prepared: Prepared | None = None
        self._is_copy = False

    def find(self, dictionary: Tensor, method: Method) -> Prepared:
        """What `prepare` gives for a dictionary that may be the same as last time; derived anew only if it is not."""
        dictionary = dictionary.detach().to(torch.promote_types(dictionary.dtype, torch.float32))
        found = self._prepared
        is_found = found is not None and self._is_copy and found.method == method and _is_same(found.dictionary, dictionary)
        return found if found is not None and is_found else self._renew(dictionary, method, is_copy=True)

    def renew(self, dictionary: Tensor, method: Method) -> Prepared:
        """What `prepare` gives for a dictionary that is about to change: nothing is copied, and `find` will not find it."""
        return self._renew(dictionary.detach(), method, is_copy=False)

    def _renew(self, dictionary: Tensor, method: Method, *, is_copy: bool) -> Prepared:
        reuse, self._prepared = self._prepared, None
        if reuse is not None and reuse.dictionary.shape != dictionary.shape:
            reuse = None  # Freed before the new one is made: two at once would double the peak.
        # What is prepared in inference mode must also serve where gradients are wanted.
        with torch.inference_mode(mode=False):
            mine = dictionary.clone(memory_format=torch.contiguous_format) if is_copy else dictionary
            self._prepared, self._is_copy = prepare(mine, method, reuse=reuse), is_copy
        return self._prepared

    def __getstate__(self) -> dict[str, object]:
        return {"_prepared": None, "_is_copy": False}


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
