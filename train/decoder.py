"""What every dictionary is, however it was found: unit-norm atoms and a decoder with bias."""

from jaxtyping import Float
from torch import Tensor, nn

from thresher.train.kernels import Codes, sparse_decode


class Decoder(nn.Module):
    """Decodes codes; whoever inherits from it registers the parameters `dictionary` and `bias`."""

    bias: nn.Parameter

    @property
    def dictionary(self) -> nn.Parameter:
        """The atoms. A property, because from Python 3.12 on a protocol sees only what a class or an instance's dict has."""
        parameter = self._parameters.get("dictionary")
        if parameter is None:
            raise AttributeError("dictionary")
        return parameter

    @property
    def d_in(self) -> int:
        """Width of an activation."""
        return self.dictionary.shape[1]

    @property
    def d_sae(self) -> int:
        """Number of atoms."""
        return self.dictionary.shape[0]

    def decode(self, codes: Codes) -> Float[Tensor, "row d_in"]:
        """Sum of the atoms weighted by their values, plus the bias."""
        return sparse_decode(codes, self.dictionary) + self.bias
