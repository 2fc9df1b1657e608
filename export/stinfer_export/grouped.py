"""Convolutions in many small groups, written as fewer groups that ONNX Runtime is fast with.

Its fast layout holds 16 channels side by side. A convolution whose groups have fewer (the first stages of a
ResNeXt) leaves it, at twice the time; with several groups as one, and zeros between them, it does not.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from stinfer.contract import F32

_FAST_CHANNELS = 16


def merge_small_groups(model: onnx.ModelProto) -> None:
    """Write every convolution whose groups are smaller than 16 channels with larger groups, in place.

    What it computes stays the same. Depthwise convolutions have a fast way of their own and stay too.
    """
    weights = {item.name: item for item in model.graph.initializer}
    for node in model.graph.node:
        group = next((attribute for attribute in node.attribute if attribute.name == "group"), None)
        if node.op_type != "Conv" or group is None or node.input[1] not in weights:
            continue
        item = weights[node.input[1]]
        n_in = item.dims[1]
        n_merged = _FAST_CHANNELS // n_in
        n_out = item.dims[0] // group.i * n_merged
        if n_in == 1 or n_in * n_merged != _FAST_CHANNELS or n_out % _FAST_CHANNELS or group.i % n_merged:
            continue
        if n_merged > 1:
            merged = _merged(numpy_helper.to_array(item), group.i, n_merged)
            item.CopyFrom(numpy_helper.from_array(merged, item.name))
            group.i //= n_merged


def _merged(weight: F32, n_groups: int, n_merged: int) -> F32:
    """Put each group's weights at its place among the channels of `n_merged` groups, zeros elsewhere.

    Parameters
    ----------
    weight : (n_out, n_in of a group, height, width)

    Returns
    -------
    (n_out, n_in of a group * n_merged, height, width)
    """
    n_out, n_in, *sides = weight.shape
    found = np.zeros((n_out, n_merged, n_in, *sides), dtype=weight.dtype)
    place = np.arange(n_out) // (n_out // n_groups) % n_merged
    found[np.arange(n_out), place] = weight
    return found.reshape(n_out, n_merged * n_in, *sides)
