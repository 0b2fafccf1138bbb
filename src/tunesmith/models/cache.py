"""Keys and values that outlive a forward pass: shared prefixes, and the rows' own tokens."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128
"""Own capacity grows by this many tokens, so that few lengths of attention occur."""
ROWS = 8
"""Room is made for this many rows more at a time."""

KeyValues = tuple[Tensor, Tensor]


class Prefix:
    """Keys and values of one prefix, by layer: (H_kv, P, D) each."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.layers: dict[int, KeyValues] = {}


class RowCache:
    """The rows' own tokens, by layer: (rows, H_kv, capacity, D) each.

    It holds no more rows and tokens than were asked for: memory that is touched for the first time
    costs more than what is computed from it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rows = self.capacity = 0
        self._layers: dict[int, KeyValues] = {}

    def reserve(self, rows: int, length: int) -> None:
        """Make room for so many rows of this many tokens; what is held stays."""
        if rows <= self.rows and length <= self.capacity:
            return
        self.rows = max(self.rows, -(-rows // ROWS) * ROWS)
        self.capacity = max(self.capacity, -(-length // BLOCK) * BLOCK)
        for layer, (keys, values) in self._layers.items():
            self._layers[layer] = self._grown(keys), self._grown(values)

    def layer(self, index: int, k: Tensor, v: Tensor) -> KeyValues:
        """The store of a layer, made at first sight with the heads and widths of k and v."""
        if index not in self._layers:
            # Zeros, not garbage: masked places must still be finite.
            self._layers[index] = (
                k.new_zeros(self.rows, len(k), self.capacity, k.shape[-1]),
                v.new_zeros(self.rows, len(v), self.capacity, v.shape[-1]),
            )
        return self._layers[index]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row into another slot."""
        for keys, values in self._layers.values():
            keys[target, :, :length] = keys[source, :, :length]
            values[target, :, :length] = values[source, :, :length]

    def _grown(self, store: Tensor) -> Tensor:
        rows, heads, length, width = store.shape
        grown = store.new_zeros(self.rows, heads, self.capacity, width)
        grown[:rows, :, :length] = store
        return grown
