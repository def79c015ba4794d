"""Arrays of one shape, used again once nobody holds them.

Memory that is fresh from the system costs a page fault every 4 KiB when it is first written: for batches of many
megabytes more than filling them. An array from here lies in a buffer that stays; the buffer is free again when the
array and every view of it, torch's included, are gone.
"""

import math
import weakref

import numpy as np


class RecycledArrays:
    """Float32 arrays of one shape. Holds as many buffers as were ever in use at once.

    Args:
        shape: of every array.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._buffers: list[bytearray] = []
        self._users: list[weakref.ref[np.ndarray]] = []

    def get(self) -> np.ndarray:
        """A float32 array of the shape that nobody else holds, with whatever it held last."""
        free = next((i for i, user in enumerate(self._users) if user() is None), len(self._users))
        if free == len(self._buffers):
            self._buffers.append(bytearray(4 * math.prod(self._shape)))
        # A view of a view holds the array that got its memory from elsewhere: `whole` lives as long as any of them.
        whole = np.frombuffer(self._buffers[free], np.float32)
        self._users[free:] = [weakref.ref(whole), *self._users[free + 1 :]]
        return whole.reshape(self._shape)
