"""What an architecture asks about a batch whose rows may be shared out among processes."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


class WholeBatch:
    """A batch whose rows are all in this process: nothing has to be asked of others.

    Where several processes have equal shares of the rows, `thresher.train.parallel` gives a module another one of these.
    The law that it keeps: the mean over processes of the gradients of `loss` is the gradient of the loss of the whole
    batch. What is a mean over rows obeys it by itself; everything else that a loss takes from its batch goes through here.
    """

    n_parts = 1
    """Shares that the batch is divided into."""

    def mean(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The mean over processes of what each has computed of its rows. Its gradient goes to the own part as if it were
        all of it."""
        return x

    def average(self, parts: Mapping[str, Float[Tensor, ""]]) -> dict[str, Tensor]:
        """The means over processes of named scalars; no gradient."""
        return dict(parts)

    def add_up(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The sum over processes; no gradient."""
        return x

    def any(self, mask: Bool[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """Where the mask of any process is set."""
        return mask

    def minimum(self, x: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The smallest of the numbers of all processes; no gradient."""
        return x

    def gather(self, rows: Shaped[Tensor, "row *rest"]) -> Shaped[Tensor, "all_rows *rest"]:
        """The rows of all processes, in the order of the whole batch; no gradient."""
        return rows

    def pick(self, rows: Float[Tensor, "row width"], wanted: Int[Tensor, "n"]) -> Float[Tensor, "n width"]:
        """Some rows, by their number in the whole batch; no gradient."""
        return rows.index_select(0, wanted)

    def keep_largest(self, values: Float[Tensor, "n"], n_kept: int) -> Float[Tensor, "n"]:
        """The values, of which each process has as many, with all but the `n_kept` largest of all processes at zero."""
        return values

    def __deepcopy__(self, memo: object) -> "WholeBatch":
        """Itself: processes cannot be copied."""
        return self


def pick_directions(residual: Float[Tensor, "row d_in"], n: int, batch: WholeBatch) -> Float[Tensor, "_ d_in"]:
    """Unit vectors along residuals: the largest of each of `n` groups of rows (of every row, if there are fewer).

    Groups are large residuals enough, and not only those of the few odd rows that a maximum over the batch would take.
    No randomness, no waiting for the device. A zero residual stays zero.
    """
    norms = batch.gather(torch.linalg.vector_norm(residual, dim=1))
    n = min(n, norms.shape[0])
    if n == 0:
        return residual[:0]
    size = norms.shape[0] // n
    largest = norms[: size * n].view(n, size).argmax(1) + torch.arange(n, device=norms.device) * size
    return torch.nn.functional.normalize(batch.pick(residual, largest), dim=1)
