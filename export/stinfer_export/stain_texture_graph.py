"""Write an ONNX graph node by node: names, constants, and the operations the analytic encoder repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from stinfer.contract import AnyArray

# ONNX Runtime 1.17 opens both; nothing newer is needed.
OPSET = 17
IR_VERSION = 8

IntSequence = Sequence[int]
FloatSequence = Sequence[float]


class GraphBuilder:
    """Nodes and constants of one ONNX graph, in the order they are added.

    A tensor is known by its name, a ``str``; every method that adds a node returns the name of its
    output. Names are counted, so that the same calls give the same bytes.
    """

    def __init__(self) -> None:
        self._nodes: list[NodeProto] = []
        self._initializers: list[TensorProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._n_tensors = 0

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output and return the output's name."""
        return self._add(op, inputs, 1, **attributes)[0]

    def floats(self, values: float | FloatSequence | npt.NDArray[np.floating]) -> str:
        """Return the name of a float32 constant."""
        return self._constant(np.asarray(values, dtype=np.float32))

    def ints(self, values: IntSequence) -> str:
        """Return the name of an int64 constant."""
        return self._constant(np.asarray(values, dtype=np.int64))

    def split(self, tensor: str, sizes: IntSequence) -> list[str]:
        """Cut a tensor's axis 1 into consecutive parts of the given sizes."""
        return self._add("Split", (tensor, self.ints(sizes)), len(sizes), axis=1)

    def pick(self, tensor: str, indices: IntSequence) -> str:
        """Take entries of a tensor's axis 1."""
        return self.node("Gather", tensor, self.ints(indices), axis=1)

    def square(self, tensor: str) -> str:
        """Multiply a tensor with itself."""
        return self.node("Mul", tensor, tensor)

    def average(self, tensor: str, side_px: int) -> str:
        """Average boxes of `side_px` that tile a (n, channels, height, width) tensor; rests are left out."""
        if side_px == 1:
            return tensor
        return self.node("AveragePool", tensor, kernel_shape=[side_px, side_px], strides=[side_px, side_px])

    def reflect(self, tensor: str, margin_px: int) -> str:
        """Mirror a (n, channels, height, width) tensor at its borders, the outermost pixel not repeated."""
        pads = self.ints([0, 0, margin_px, margin_px] * 2)
        return self.node("Pad", tensor, pads, mode="reflect")

    def convolve(
        self,
        tensor: str,
        kernels: npt.NDArray[np.floating],
        bias: FloatSequence | npt.NDArray[np.floating] | None = None,
        stride: int = 1,
    ) -> str:
        """Correlate with (n_out, n_in, k, k) kernels, without padding."""
        inputs = [tensor, self.floats(kernels)]
        if bias is not None:
            inputs.append(self.floats(bias))
        return self.node("Conv", *inputs, strides=[stride, stride])

    def mix(
        self,
        tensor: str,
        matrix: npt.NDArray[np.floating],
        bias: FloatSequence | npt.NDArray[np.floating] | None = None,
    ) -> str:
        """Combine the channels of every pixel linearly: (n_out, n_in) matrix, (n_out,) bias."""
        return self.convolve(tensor, matrix[:, :, np.newaxis, np.newaxis], bias)

    def name_output(self, tensor: str, name: str) -> None:
        """Give a tensor the name of a graph output."""
        self._nodes.append(helper.make_node("Identity", [tensor], [name], name=name))

    def to_model(
        self, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]
    ) -> ModelProto:
        """Close the graph."""
        graph: GraphProto = helper.make_graph(self._nodes, name, inputs, outputs, self._initializers)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="stinfer",
        )

    def _add(self, op: str, inputs: Sequence[str], n_outputs: int, **attributes: Any) -> list[str]:
        outputs = [f"{op.lower()}_{self._n_tensors + i}" for i in range(n_outputs)]
        self._n_tensors += n_outputs
        self._nodes.append(helper.make_node(op, list(inputs), outputs, name=outputs[0], **attributes))
        return outputs

    def _constant(self, array: AnyArray) -> str:
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = f"constant_{len(self._constants)}"
            self._initializers.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]


@dataclass(frozen=True)
class Block:
    """Named channels that lie side by side in one tensor.

    Parameters
    ----------
    names : one per entry of the tensor's axis 1
    tensor : name of a (n, len(names)) or (n, len(names), height, width) tensor
    """

    names: tuple[str, ...]
    tensor: str


def join(graph: GraphBuilder, blocks: Sequence[Block]) -> Block:
    """Put blocks side by side."""
    names = tuple(name for block in blocks for name in block.names)
    return Block(names, graph.node("Concat", *(block.tensor for block in blocks), axis=1))


def anisotropy(graph: GraphBuilder, xx: str, yy: str, xy: str) -> str:
    """Difference of the eigenvalues of symmetric 2 x 2 tensors: ``sqrt((xx - yy)² + 4 xy²)``."""
    difference = graph.node("Sub", xx, yy)
    fourfold = graph.node("Mul", graph.square(xy), graph.floats(4.0))
    return graph.node("Sqrt", graph.node("Add", graph.square(difference), fourfold))


def product_of_two(graph: GraphBuilder, tensor: str) -> str:
    """Multiply the first of two channels with the second."""
    return graph.node("Mul", *graph.split(tensor, [1, 1]))
