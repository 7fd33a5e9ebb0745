"""How the values of a chunk become its bytes: as they are, or compressed by codecs that every zarr v3 reader has."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numcodecs
import numcodecs.blosc
import numpy as np
import numpy.typing as npt
import torch

from thresher.errors import StoreError

Profile = Literal["raw", "compact", "archive"]
"""`raw`: rows as they are. `compact`: lz4, for disks and networks of less than about 1.5 GB/s. `archive`: zstd of transposed
chunks, the smallest, for stores that are kept and seldom read. A store that is not raw cannot be mapped into memory,
be read from the disk into place, or be seen as HDF5 without a copy."""

LITTLE: Mapping[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
TRANSPOSE: Mapping[str, Any] = {"name": "transpose", "configuration": {"order": [1, 0]}}
SHUFFLES: Mapping[str, int] = {
    "noshuffle": numcodecs.Blosc.NOSHUFFLE,
    "shuffle": numcodecs.Blosc.SHUFFLE,
    "bitshuffle": numcodecs.Blosc.BITSHUFFLE,
}


def describe_codecs(profile: Profile, item_size: int, *, is_matrix: bool) -> list[Mapping[str, Any]]:
    """`codecs` of the chunks of an array in its `zarr.json`; `is_matrix` is one of [row, feature], not of [row]."""
    if profile == "raw":
        return [LITTLE]
    if not is_matrix:
        return [LITTLE, {"name": "zstd", "configuration": {"level": 1, "checksum": False}}]
    cname = "lz4" if profile == "compact" else "zstd"
    settings = {"cname": cname, "clevel": 5, "shuffle": "bitshuffle", "typesize": item_size, "blocksize": 0}
    blosc = {"name": "blosc", "configuration": settings}
    return [LITTLE, blosc] if profile == "compact" else [TRANSPOSE, LITTLE, blosc]


class ChunkCodec(NamedTuple):
    """Compresses whole chunks. Safe to use from several threads; equal chunks give equal bytes."""

    is_transposed: bool
    compressor: Any
    """A codec of numcodecs."""

    def encode(self, chunk: npt.NDArray[Any]) -> bytes:
        """The bytes of a chunk [row, ...]. Raises StoreError where blosc would not give the same ones again."""
        if numcodecs.blosc.use_threads:
            # Its threads leave their blocks in the order in which they come to the end.
            raise StoreError(
                "numcodecs.blosc.use_threads is on: equal rows would not give equal bytes; switch it off (zarr-python does) "
                "or store them with profile raw"
            )
        values = np.ascontiguousarray(chunk.T if self.is_transposed else chunk)
        return self.compressor.encode(values.view(np.uint8).reshape(-1))

    def decode(self, encoded: bytearray, out: npt.NDArray[Any]) -> None:
        """Fill a contiguous chunk [row, ...] from its bytes. Raises ValueError when they are not those of such a chunk."""
        values = np.empty(out.shape[::-1], out.dtype) if self.is_transposed else out
        try:
            decoded = self.compressor.decode(encoded, values.view(np.uint8).reshape(-1))
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        if memoryview(decoded).nbytes != out.nbytes:
            raise ValueError(f"{memoryview(decoded).nbytes} bytes, expected {out.nbytes}")
        if self.is_transposed:
            bits = f"i{out.itemsize}"
            # numpy takes 18 ms for 3 MiB, torch one.
            torch.from_numpy(out.view(bits)).copy_(torch.from_numpy(values.view(bits)).T)


def parse_codecs(codecs: Sequence[Mapping[str, Any]], *, is_matrix: bool) -> ChunkCodec | None:
    """What reads chunks of these `codecs` of a `zarr.json`, None where they hold rows as they are.

    Raises ValueError, KeyError or TypeError for codecs that this package leaves to zarr-python.
    """
    is_transposed = is_matrix and codecs[0] == TRANSPOSE
    serializer, *compressors = codecs[is_transposed:]
    if serializer != LITTLE or len(compressors) > 1 or (is_transposed and not compressors):
        raise ValueError(f"codecs {codecs}")
    if not compressors:
        return None
    name, settings = compressors[0]["name"], dict(compressors[0]["configuration"])
    if name == "zstd":
        return ChunkCodec(is_transposed, numcodecs.Zstd(**settings))
    if name != "blosc":
        raise ValueError(f"codec {name}")
    return ChunkCodec(is_transposed, numcodecs.Blosc(**(settings | {"shuffle": SHUFFLES[settings["shuffle"]]})))
