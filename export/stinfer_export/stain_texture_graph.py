"""Write an ONNX graph node by node: names, constants, and the operations the analytic encoder repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from stinfer.contract import F64, AnyArray

# ONNX Runtime 1.17 opens both; nothing newer is needed.
OPSET = 17
IR_VERSION = 8

# ONNX Runtime convolves in its fast layout where channels are a multiple of this.
FAST_CHANNELS = 16

IntSequence = Sequence[int]
FloatSequence = Sequence[float]


class GraphBuilder:
    """Nodes and constants of one ONNX graph, in the order they are added.

    A tensor is known by its name, a ``str``; every method that adds a node returns the name of its
    output. Names are counted, so that the same calls give the same bytes.

    Parameters
    ----------
    prefix : of all names; a graph within another needs one, since names are shared
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._nodes: list[NodeProto] = []
        self._initializers: list[TensorProto] = []
        self._shapes: list[ValueInfoProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._n_tensors = 0

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output and return the output's name."""
        return self._add(op, inputs, 1, **attributes)[0]

    def floats(self, values: float | FloatSequence | npt.NDArray[np.floating]) -> str:
        """Return the name of a float32 constant."""
        return self._constant(np.asarray(values, dtype=np.float32))

    def ints(self, values: int | IntSequence) -> str:
        """Return the name of an int64 constant."""
        return self._constant(np.asarray(values, dtype=np.int64))

    def split(self, tensor: str, sizes: IntSequence) -> list[str]:
        """Cut a tensor's axis 1 into consecutive parts of the given sizes."""
        return self._add("Split", (tensor, self.ints(sizes)), len(sizes), axis=1)

    def cut(self, tensor: str, axes: IntSequence, starts: IntSequence, ends: IntSequence) -> str:
        """Take a part of a tensor along some axes; negative ends count from the end."""
        return self.node("Slice", tensor, self.ints(starts), self.ints(ends), self.ints(axes))

    def reshape(self, tensor: str, shape: IntSequence) -> str:
        """Give a tensor another shape: 0 keeps a side, -1 takes what is left."""
        return self.node("Reshape", tensor, self.ints(shape))

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

    def reflect(self, tensor: str, margins_px: IntSequence) -> str:
        """Mirror a tensor at its borders, as far as is given per axis, the outermost pixel not repeated."""
        return self.node("Pad", tensor, self.ints([*margins_px] * 2), mode="reflect")

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

    def declare(self, tensor: str, shape: Sequence[int | str]) -> None:
        """Say a float tensor's shape where ONNX cannot infer it; the same word stands for the same side."""
        self._shapes.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, shape))

    def scan(
        self, tensor: str, body: GraphBuilder, item: ValueInfoProto, outputs: Sequence[str]
    ) -> list[str]:
        """Run a graph on each item along a tensor's axis 0, one after the other, and stack what it gives.

        Parameters
        ----------
        tensor : (n_items, ...)
        body : the graph
        item : what it takes, one item
        outputs : names of what it gives, float32

        Returns
        -------
        as many names as `outputs`, each of (n_items, ...)
        """
        given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        return self._add(
            "Scan", (tensor,), len(outputs), body=body._close("body", [item], given), num_scan_inputs=1
        )

    def name_output(self, tensor: str, name: str) -> None:
        """Give a tensor the name of a graph output."""
        self._nodes.append(helper.make_node("Identity", [tensor], [name], name=name))

    def to_model(
        self, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]
    ) -> ModelProto:
        """Close the graph."""
        return helper.make_model(
            self._close(name, inputs, outputs),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="stinfer",
        )

    def _close(
        self, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]
    ) -> GraphProto:
        return helper.make_graph(
            self._nodes, name, inputs, outputs, self._initializers, value_info=self._shapes
        )

    def _add(self, op: str, inputs: Sequence[str], n_outputs: int, **attributes: Any) -> list[str]:
        outputs = [f"{self._prefix}{op.lower()}_{self._n_tensors + i}" for i in range(n_outputs)]
        self._n_tensors += n_outputs
        self._nodes.append(helper.make_node(op, list(inputs), outputs, name=outputs[0], **attributes))
        return outputs

    def _constant(self, array: AnyArray) -> str:
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = f"{self._prefix}constant_{len(self._constants)}"
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


@dataclass(frozen=True)
class Averages:
    """Means over cells, and how named channels are combined from them.

    Parameters
    ----------
    names : of the channels
    tensor : name of a (n, n_means, rows, columns) tensor
    matrix : (len(names), n_means), what each mean counts in a channel
    offsets : (len(names),), added then
    """

    names: tuple[str, ...]
    tensor: str
    matrix: F64
    offsets: F64

    @classmethod
    def of(
        cls, names: tuple[str, ...], tensor: str, matrix: F64 | None = None, offsets: F64 | None = None
    ) -> Averages:
        """Make one; by default, every mean is a channel."""
        matrix = np.eye(len(names)) if matrix is None else matrix
        return cls(names, tensor, matrix, np.zeros(len(names)) if offsets is None else offsets)

    def mixed(self, graph: GraphBuilder) -> Block:
        """Combine them."""
        # Of another number of channels, ONNX Runtime adds in an order that depends on the number of threads.
        n_more = -self.matrix.shape[1] % FAST_CHANNELS
        pads = graph.ints([0, 0, 0, 0, 0, n_more, 0, 0])
        padded = graph.node("Pad", self.tensor, pads)
        return Block(self.names, graph.mix(padded, np.pad(self.matrix, ((0, 0), (0, n_more))), self.offsets))


def side_by_side(graph: GraphBuilder, parts: Sequence[Averages]) -> Averages:
    """Put averages into one tensor; what is combined from them stays the same."""
    names = tuple(name for part in parts for name in part.names)
    matrix = np.zeros((len(names), sum(part.matrix.shape[1] for part in parts)))
    row = column = 0
    for part in parts:
        n_names, n_means = part.matrix.shape
        matrix[row : row + n_names, column : column + n_means] = part.matrix
        row, column = row + n_names, column + n_means
    tensor = graph.node("Concat", *(part.tensor for part in parts), axis=1)
    return Averages(names, tensor, matrix, np.concatenate([part.offsets for part in parts]))


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
