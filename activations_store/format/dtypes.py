"""Stored dtypes: what a site's numbers look like in memory and on disk.

numpy and zarr have no bfloat16, so it is stored as the upper 16 bits of float32 in a uint16 array, with the
attribute `dtype: "bfloat16"` saying what the bits mean.

int8 has a scale a row: a row of C values x is stored as C + 4 bytes, q = round(x / s) with s = max|x| / 127,
then the four bytes of s as little-endian float32. It reads back as q s, wrong by at most s / 2 a value. A row
that holds NaN or infinity has scale NaN and reads as NaN throughout, and the writer counts it.

Every dtype fills unwritten places with NaN (for int8: bytes -1, whose last four are the float32 0xFFFFFFFF, a
NaN scale): a reader that does not know commit records sees NaN, never a plausible zero.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_BFLOAT16_NAN = 0x7FC0
_FILL_JSON = {"bfloat16": _BFLOAT16_NAN, "int8": -1}
SCALE_BYTES = 4
_LEVELS = np.float32(127)


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
        exponent: mask of the exponent bits in the stored word; all ones there means NaN or infinity. 0 where
            the stored words have none (int8).
        mantissa: mask of the mantissa bits; non-zero under a full exponent means NaN.
        row_extra: stored items that follow the values of every row (int8: the 4 bytes of its scale).
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
    row_extra: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes a value on disk."""
        return self.stored.itemsize

    @property
    def decoded(self) -> np.dtype:
        """The dtype that `decode` gives: float16 for float16, float32 for all others."""
        return _F16 if self.name == "float16" else _F32

    @property
    def fill(self) -> np.generic:
        """The fill value as a scalar of the stored dtype."""
        return self.stored.type(_FILL_JSON.get(self.name, np.nan))

    def count_nonfinite(self, given: np.ndarray, stored: np.ndarray) -> tuple[int, int]:
        """Number of (NaN, infinite) values in `stored`, the encoded form of `given`.

        Reads bits, so float16 is as fast as float32. int8 cannot hold such values: there those of `given` count.
        """
        if given.dtype == _I8:  # stored rows, taken as they are: one whose scale is NaN was not finite
            scale = np.ascontiguousarray(given[..., -SCALE_BYTES:]).view("<f4")
            return int(np.isnan(scale).sum()) * (given.shape[-1] - SCALE_BYTES), 0
        if not self.exponent:
            return int(np.isnan(given).sum()), int(np.isinf(given).sum())
        bits = stored.view(np.uint16 if self.itemsize == 2 else np.uint32)
        sign = bits.dtype.type(1 << (8 * self.itemsize - 1))
        # As numbers, the bits of a finite value lie below those of infinity, apart from the sign. Two maxima are
        # the cheapest test of that: negative values are the largest unsigned, positive ones the largest signed.
        positive, negative = int(bits.view(f"i{self.itemsize}").max()), int(bits.max())
        if positive < self.exponent and negative < sign + self.exponent:
            return 0, 0
        full = (bits & bits.dtype.type(self.exponent)) == self.exponent
        n_full = int(np.count_nonzero(full))
        n_nan = int(np.count_nonzero(bits[full] & bits.dtype.type(self.mantissa)))
        return n_nan, n_full - n_nan


def _to_float16(x: np.ndarray) -> np.ndarray:
    """float32 -> float16, round to nearest even; NaN becomes a quiet one.

    torch rounds alike and is seven times as fast: it does the work where the program has loaded it.
    """
    if x.dtype == _F16:
        return x
    torch = sys.modules.get("torch")
    if torch is not None and x.flags.writeable and x.flags.c_contiguous:  # torch takes no other memory without a word
        return torch.from_numpy(x).half().numpy()
    with np.errstate(over="ignore"):  # overflow is counted by the writer, which then refuses or records it
        out = x.astype("<f2")
    nan = np.isnan(out)
    if nan.any():  # the processor keeps the upper bits of the mantissa and sets the quiet bit, numpy not always
        bits = x[nan].view(np.uint32)
        out[nan] = ((bits >> 16 & 0x8000) | 0x7E00 | (bits >> 13 & 0x3FF)).astype(np.uint16).view(np.float16)
    return out


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


def _to_int8(x: np.ndarray) -> np.ndarray:
    """(..., C) float -> (..., C + 4) int8: values by the row's scale, then the scale's bytes.

    int8 input is taken as such rows already.
    """
    if x.dtype == _I8:
        return x
    out = np.empty((*x.shape[:-1], x.shape[-1] + SCALE_BYTES), np.int8)
    for at in np.ndindex(x.shape[:-2]):  # one map at a time: no second float32 copy of a whole shard
        rows = x[at].astype(np.float32, copy=False)
        scale = np.abs(rows).max(axis=-1) / _LEVELS
        scale[~np.isfinite(scale)] = np.nan
        # A row of zeros, or of values too small for a float32 scale, is stored as zeros.
        inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale >= np.float32(2.0**-126))
        inverse[np.isnan(scale)] = 0
        with np.errstate(invalid="ignore"):  # infinity x 0 in a row whose scale is NaN anyway
            q = np.rint(rows * inverse[:, None])
        out[at][:, :-SCALE_BYTES] = np.nan_to_num(q, nan=0.0, posinf=0.0, neginf=0.0).clip(-127, 127)
        out[at][:, -SCALE_BYTES:] = scale.astype("<f4")[:, None].view(np.int8)
    return out


def _from_int8(stored: np.ndarray) -> np.ndarray:
    scale = np.ascontiguousarray(stored[..., -SCALE_BYTES:]).view("<f4")
    return stored[..., :-SCALE_BYTES].astype(np.float32) * scale


def _unchanged(x: np.ndarray) -> np.ndarray:
    return x


_F16, _F32, _U16, _I8 = np.dtype("<f2"), np.dtype("<f4"), np.dtype("<u2"), np.dtype("i1")

DTYPES: dict[str, StoredDType] = {
    "float32": StoredDType("float32", "float32", _F32, "NaN", (_F32,), _unchanged, _unchanged, 0x7F800000, 0x007FFFFF),
    "float16": StoredDType("float16", "float16", _F16, "NaN", (_F16, _F32), _to_float16, _unchanged, 0x7C00, 0x03FF),
    "bfloat16": StoredDType(
        "bfloat16", "uint16", _U16, _BFLOAT16_NAN, (_U16, _F32), _to_bfloat16, _from_bfloat16, 0x7F80, 0x007F
    ),
    "int8": StoredDType("int8", "int8", _I8, -1, (_F16, _F32, _I8), _to_int8, _from_int8, 0, 0, row_extra=SCALE_BYTES),
}
