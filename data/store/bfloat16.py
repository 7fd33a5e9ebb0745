"""The registered zarr v3 extension data type `bfloat16`, which zarr-python does not bring along."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeGuard

import ml_dtypes
import numpy as np
from zarr.core.dtype.common import HasEndianness, HasItemSize
from zarr.dtype import ZDType, data_type_registry

try:
    from zarr.errors import DataTypeValidationError  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:  # zarr before 3.2
    from zarr.dtype import DataTypeValidationError

NATIVE = np.dtype(ml_dtypes.bfloat16)
QUIET_NAN = 0x7FC0
"""Bits that the specification writes as "NaN"; any other NaN is written as its bits."""
SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, kw_only=True)
class BFloat16(ZDType[Any, Any], HasEndianness, HasItemSize):
    """`bfloat16` of the zarr-extensions registry: 2 bytes, in numpy the type of `ml_dtypes`."""

    _zarr_v3_name: ClassVar[Literal["bfloat16"]] = "bfloat16"
    dtype_cls: ClassVar[type[np.dtype[Any]]] = type(NATIVE)

    @property
    def item_size(self) -> int:
        """Bytes of one value."""
        return 2

    @classmethod
    def from_native_dtype(cls, dtype: "np.dtype[Any]") -> "BFloat16":
        """The data type of a numpy dtype; DataTypeValidationError for any but bfloat16."""
        if dtype != NATIVE:
            raise DataTypeValidationError(f"{dtype} is not bfloat16")
        return cls()

    def to_native_dtype(self) -> "np.dtype[Any]":
        """The numpy dtype, in the byte order of the codec."""
        return NATIVE.newbyteorder(">") if self.endianness == "big" else NATIVE

    @classmethod
    def _from_json_v2(cls, data: Any) -> "BFloat16":
        raise DataTypeValidationError(f"{data!r}: bfloat16 exists in zarr v3 only")

    @classmethod
    def _from_json_v3(cls, data: Any) -> "BFloat16":
        if data != cls._zarr_v3_name and data != {"name": cls._zarr_v3_name}:
            raise DataTypeValidationError(f"{data!r} is not bfloat16")
        return cls()

    def to_json(self, zarr_format: Literal[2, 3]) -> Any:
        """Its name in `zarr.json`."""
        if zarr_format != 3:
            raise ValueError("bfloat16 exists in zarr v3 only; create the array with zarr_format=3")
        return self._zarr_v3_name

    def _check_scalar(self, data: object) -> TypeGuard[Any]:
        return isinstance(data, (int, float, np.floating, np.integer, ml_dtypes.bfloat16))

    def cast_scalar(self, data: object) -> Any:
        """A number as bfloat16; TypeError for anything else."""
        if not self._check_scalar(data):
            raise TypeError(f"cannot make a bfloat16 of {data!r}")
        return ml_dtypes.bfloat16(data)

    def default_scalar(self) -> Any:
        """Zero."""
        return ml_dtypes.bfloat16(0)

    def to_json_scalar(self, data: object, *, zarr_format: Literal[2, 3]) -> Any:
        """A fill value for `zarr.json`: a number, "Infinity", "-Infinity", "NaN", or the bits of another NaN in hex."""
        value = float(self.cast_scalar(data))
        if math.isnan(value):
            bits = int(np.asarray(data, NATIVE).view(np.uint16))
            return "NaN" if bits == QUIET_NAN else f"0x{bits:04x}"
        if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        return value

    def from_json_scalar(self, data: Any, *, zarr_format: Literal[2, 3]) -> Any:
        """The fill value that `to_json_scalar` wrote."""
        if isinstance(data, str) and data.startswith("0x"):
            return np.uint16(int(data, 16)).view(NATIVE)
        if data == "NaN":
            return np.uint16(QUIET_NAN).view(NATIVE)
        return self.cast_scalar(SPECIAL[data] if isinstance(data, str) else data)


def register() -> None:
    """Make zarr-python know the type. Its entry point does the same, but zarr loads entry points only from 3.4.1 on."""
    if BFloat16._zarr_v3_name not in data_type_registry.contents:  # pyright: ignore[reportPrivateUsage]
        data_type_registry.register(BFloat16._zarr_v3_name, BFloat16)  # pyright: ignore[reportPrivateUsage]
