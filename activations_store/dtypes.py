"""Stored dtypes: what a site's numbers look like in memory and on disk.

numpy and zarr have no bfloat16, so it is stored as the upper 16 bits of float32 in a uint16 array, with the
attribute `dtype: "bfloat16"` saying what the bits mean. Every dtype fills unwritten places with NaN: a
reader that does not know commit records sees NaN, never a plausible zero.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_BFLOAT16_NAN = 0x7FC0


@dataclass(frozen=True)
class StoredDType:
    """One entry of the table of dtypes.

    Attributes:
        name: name in `SiteSpec.dtype` and in the zarr attributes.
        zarr_name: `data_type` in `zarr.json`.
        stored: little-endian numpy dtype of the bytes on disk.
        fill_json: the array's fill value as zarr writes it in JSON.
        accepts: numpy dtypes that `encode` takes; anything else is refused, so no cast is silent.
        encode: array of an accepted dtype -> array of `stored`, values rounded to nearest even.
        decode: array of `stored` -> array that a user computes with (float16, float32).
        exponent: mask of the exponent bits in the stored word; all ones there means NaN or infinity.
        mantissa: mask of the mantissa bits; non-zero under a full exponent means NaN.
    """

    name: str
    zarr_name: str
    stored: np.dtype
    fill_json: object
    accepts: tuple[np.dtype, ...]
    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], np.ndarray]
    exponent: int
    mantissa: int

    @property
    def itemsize(self) -> int:
        """Bytes a value on disk."""
        return self.stored.itemsize

    @property
    def fill(self) -> np.generic:
        """The fill value as a scalar of the stored dtype."""
        return self.stored.type(_BFLOAT16_NAN if self.name == "bfloat16" else np.nan)

    def count_nonfinite(self, stored: np.ndarray) -> tuple[int, int]:
        """Number of (NaN, infinite) values in an array of the stored dtype.

        Reads bits, so float16 is as fast as float32.
        """
        bits = stored.view(np.uint16 if self.itemsize == 2 else np.uint32)
        full = (bits & bits.dtype.type(self.exponent)) == self.exponent
        n_full = int(np.count_nonzero(full))
        if not n_full:
            return 0, 0
        n_nan = int(np.count_nonzero(bits[full] & bits.dtype.type(self.mantissa)))
        return n_nan, n_full - n_nan


def _to_float16(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # overflow is counted by the writer, which then refuses or records it
        return x.astype("<f2", copy=False)


def _to_bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 bits, round to nearest even, NaN kept NaN.

    Uint16 input is taken as bits already.
    """
    if x.dtype == np.uint16:
        return x
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    out = rounded.astype("<u2")
    # Rounding a NaN's mantissa can carry into the sign or clear it: keep the upper bits and set the quiet
    # bit.
    nan = np.isnan(x)
    if nan.any():
        out[nan] = ((bits[nan] >> np.uint32(16)) | np.uint32(0x40)).astype("<u2")
    return out


def _from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _unchanged(x: np.ndarray) -> np.ndarray:
    return x


_F16, _F32, _U16 = np.dtype("<f2"), np.dtype("<f4"), np.dtype("<u2")

DTYPES: dict[str, StoredDType] = {
    "float32": StoredDType("float32", "float32", _F32, "NaN", (_F32,), _unchanged, _unchanged, 0x7F800000, 0x007FFFFF),
    "float16": StoredDType("float16", "float16", _F16, "NaN", (_F16, _F32), _to_float16, _unchanged, 0x7C00, 0x03FF),
    "bfloat16": StoredDType(
        "bfloat16", "uint16", _U16, _BFLOAT16_NAN, (_U16, _F32), _to_bfloat16, _from_bfloat16, 0x7F80, 0x007F
    ),
}
