"""Laws of choosing a device."""

import pytest
import torch

from thresher.devices import find_device
from thresher.errors import ConfigError


@pytest.mark.parametrize("name", ["tpu", "meta", "cuda:99", "gpu 1", ""])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device='{name}'"):
        find_device(name)


def test_auto_is_a_gpu_only_where_there_is_one() -> None:
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert find_device("cpu") == torch.device("cpu")
