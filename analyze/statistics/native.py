"""Sums over pairs of sparse codes in loops that numba compiles when they are first called.

They give the same bits for any number of threads. Products of codes are added up in the order of the images and without fused
multiply-adds, so they are SciPy's to the bit.
"""

# pyright: reportUntypedFunctionDecorator=none, reportUnknownVariableType=none, reportUnknownMemberType=none
# pyright: reportUnknownArgumentType=none
# numba and llvmlite are not typed

from collections.abc import Callable
from typing import Any, NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float, Int, UInt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from scipy.sparse import csr_array

from thresher.train.kernels.native.compiling import compiled
from thresher.train.kernels.native.threads import share_rows

ROWS, WIDTH = 2048, 32
"""Rows whose sums one thread adds up, and columns of the dictionary at once: their atoms stay in the processor's cache, 4 MB of
16,384. Constants, since they are part of the order in which sums are added up."""
LINE = 64
"""Bytes of a line of the processor's cache."""
NEAR, FAR, FARTHEST = 8, 16, 24
"""Entries ahead at which codes, where they start, and whose they are, are asked for: no processor guesses where a text lies."""


class Stored(NamedTuple):
    """The entries of a sparse matrix as the loops read them: unsigned, since a negative index would be looked for."""

    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray


def store(codes: csr_array) -> Stored:
    """A view of its entries; the starts of the rows are copied."""
    return Stored(codes.indptr.astype(np.uint32), codes.indices.view(np.uint32), np.asarray(codes.data))


def add_products(
    postings: Stored,
    chosen: Int[np.ndarray, " row"],
    texts: Stored,
    partner: UInt[np.ndarray, " image"],
    images: slice,
    products: np.ndarray,
    cofires: np.ndarray,
) -> None:
    """Add what some `images` give to rows of the Gram matrix: `products` and `cofires` [row, feature], all features of texts.

    `postings` are the codes of the images by feature, `partner` the row of `texts` of each image.
    """
    bounds = np.stack([postings.starts[chosen], postings.starts[chosen + 1]], axis=1)
    bounds = np.array(
        [first + np.searchsorted(postings.columns[first:last], (images.start, images.stop)) for first, last in bounds]
    )
    share_rows(len(chosen), _add_products, bounds, *postings[1:], partner, *texts, products, cofires)


def divide_columns(dictionary: Float[np.ndarray, "feature d_in"]) -> Float[np.ndarray, "part feature _"]:
    """The dictionary in parts of WIDTH columns, the last filled up with zeros."""
    n_features, d_in = dictionary.shape
    padded = np.zeros((n_features, -(-d_in // WIDTH) * WIDTH))
    padded[:, :d_in] = dictionary
    return np.ascontiguousarray(padded.reshape(n_features, -1, WIDTH).transpose(1, 0, 2))


def project_both(
    image: csr_array, text: csr_array, columns: Float[np.ndarray, "part feature _"]
) -> tuple[Float[np.ndarray, " feature"], Float[np.ndarray, " feature"]]:
    """Sum over pairs, row n of both, of z_i <d_i, reconstruction of the other side>: for the image's z, for the text's.

    `columns` are those of `divide_columns`. Each atom is read once for both sides, 3 to 4 times as fast as SciPy's products.
    """
    n_rows, n_features = len(image.indptr) - 1, columns.shape[1]
    n_parts = -(-n_rows // ROWS)
    sums = np.zeros((2, n_parts, n_features))
    share_rows(n_parts, _project, ROWS, n_rows, *store(image), *store(text), columns, *sums)
    return sums[0].sum(axis=0), sums[1].sum(axis=0)


def _compile(function: Callable[..., Any]) -> Any:
    """To run without the interpreter's lock; kept on disk where that can be written."""
    try:
        return njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # Neither the package nor the user's cache folder can be written.
        return njit(nogil=True, error_model="numpy")(function)


@intrinsic
@no_type_check
def _prefetch(_: Any, array: Any, place: Any) -> Any:
    """Ask for the line of the cache that an entry of an array is in."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, *[number] * 3])
        )
        address = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        builder.call(prefetch, [address, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.uintp), generate


@_compile
@no_type_check
def _add_products(first, last, bounds, images, values, partner, starts, features, codes, products, cofires):
    part = np.zeros(products.shape[1])
    for row in range(first, last):
        count = cofires[row]
        begin, end = np.uint64(bounds[row, 0]), np.uint64(bounds[row, 1])
        part[:] = 0.0
        for entry in range(begin, end):
            if entry + FARTHEST < end:
                _prefetch(partner, images[entry + FARTHEST])
                _prefetch(starts, partner[images[entry + FAR]])
                ahead = partner[images[entry + NEAR]]
                start, stop = starts[ahead], starts[ahead + 1]
                for place in range(start, stop, LINE // 8):
                    _prefetch(codes, place)
                for place in range(start, stop, LINE // 4):
                    _prefetch(features, place)
            text, value = partner[images[entry]], values[entry]
            for place in range(starts[text], starts[text + 1]):
                feature = features[place]
                part[feature] += value * codes[place]
                count[feature] += 1
        product = products[row]
        for feature in range(len(part)):
            product[feature] += part[feature]


@compiled
@no_type_check
def _project(
    first, last, size, n_rows, starts, features, codes, starts_text, features_text, codes_text, columns, sums, sums_text
):
    width = columns.shape[2]
    x, y = np.zeros(width), np.zeros(width)
    for part in range(first, last):
        begin, end = part * size, min((part + 1) * size, n_rows)
        base, base_text = starts[begin], starts_text[begin]
        inner, inner_text = np.zeros(starts[end] - base), np.zeros(starts_text[end] - base_text)
        for piece in range(len(columns)):
            atoms = columns[piece]
            for row in range(begin, end):
                entries, entries_text = (starts[row], starts[row + 1]), (starts_text[row], starts_text[row + 1])
                x[:] = 0.0
                y[:] = 0.0
                for place in range(entries[0], entries[1]):
                    value, atom = codes[place], atoms[features[place]]
                    for column in range(width):
                        x[column] += value * atom[column]
                for place in range(entries_text[0], entries_text[1]):
                    value, atom = codes_text[place], atoms[features_text[place]]
                    for column in range(width):
                        y[column] += value * atom[column]
                for place in range(entries[0], entries[1]):
                    atom, product = atoms[features[place]], 0.0
                    for column in range(width):
                        product += atom[column] * y[column]
                    inner[place - base] += product
                for place in range(entries_text[0], entries_text[1]):
                    atom, product = atoms[features_text[place]], 0.0
                    for column in range(width):
                        product += atom[column] * x[column]
                    inner_text[place - base_text] += product
        for place in range(base, starts[end]):
            sums[part, features[place]] += codes[place] * inner[place - base]
        for place in range(base_text, starts_text[end]):
            sums_text[part, features_text[place]] += codes_text[place] * inner_text[place - base_text]
