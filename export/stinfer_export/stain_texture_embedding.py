"""The part of the analytic encoder that is not linear: from a window's means to what describes it.

`add_embedding` takes the means over any window of cells, so the same nodes serve a patch and the windows
of a map.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import TensorProto, checker, helper

from stinfer.contract import HEAD_INPUT, MODEL_EMBEDDING
from stinfer_export.stain_texture_graph import Block, GraphBuilder, anisotropy, join, product_of_two

STAINS = ("hematoxylin", "eosin", "residual")
# The residual says little about structure: its texture costs time and adds no accuracy.
TEXTURE_STAINS = STAINS[:2]
# Level l is the image averaged over boxes of 2^l px. The last only has its moments taken: cells are 2 px.
N_TEXTURE_LEVELS = 4
N_LEVELS = 5

# In the units of what they are added to; about the noise of a JPEG's empty glass. Well below them a
# statistic fades to 0 in place of reporting noise.
ENERGY_FLOOR = 1e-4
VARIANCE_FLOOR = 1e-3
SHARE_FLOOR = 1e-3

# Numbers in the longest vector of any processor.
_VECTOR = 16


def add_embedding(graph: GraphBuilder, means: Block) -> Block:
    """Add the nodes from means to statistics.

    Parameters
    ----------
    graph : where to add
    means : (n, channels), ``features`` averaged over each of n windows, in the order of its names

    Returns
    -------
    (n, dim) float32, about as many entries per kind of statistic as it is worth in a plain Euclidean or
    cosine distance, once every entry is standardized over the references

    References
    ----------
    Gradient coherence ``(λ1 - λ2) / (λ1 + λ2)``: Bigün and Granlund, Proc. ICCV (1987) 433-438.
    Distance of square roots of shares: E. Hellinger, J. reine angew. Math. 136 (1909) 210-271.
    """
    window = _Window(graph, means)
    blocks = [*window.distribution(), *window.hue(), window.shares()]
    for level in range(1, N_LEVELS):
        blocks += window.spread(level)
    for level in range(N_TEXTURE_LEVELS):
        blocks += window.texture(level)
    return join(graph, blocks)


def build_head(channels: tuple[str, ...]) -> bytes:
    """Build the same nodes as a file of their own, for windows of a map; always the same bytes.

    Parameters
    ----------
    channels : names of the channels of ``features``

    Returns
    -------
    ONNX file, ``means`` (n, channels) to ``embedding`` (n, dim)
    """
    graph = GraphBuilder()
    embedding = add_embedding(graph, Block(channels, HEAD_INPUT))
    graph.name_output(embedding.tensor, MODEL_EMBEDDING)
    means = helper.make_tensor_value_info(HEAD_INPUT, TensorProto.FLOAT, ["n", len(channels)])
    entries = helper.make_tensor_value_info(MODEL_EMBEDDING, TensorProto.FLOAT, ["n", len(embedding.names)])
    model = graph.to_model("head", [means], [entries])
    checker.check_model(model, full_check=True)
    head: bytes = model.SerializeToString(deterministic=True)
    return head


def named(statistic: str, stains: Sequence[str]) -> tuple[str, ...]:
    """Name a statistic's channels, one per stain."""
    return tuple(f"{statistic}_{stain}" for stain in stains)


class _Window:
    """Nodes that turn a window's means into its statistics.

    Parameters
    ----------
    graph : where to add
    means : (n, channels)
    """

    def __init__(self, graph: GraphBuilder, means: Block) -> None:
        self._graph = graph
        self._tensor = means.tensor
        self._index = {name: i for i, name in enumerate(means.names)}

    def distribution(self) -> list[Block]:
        """Mean and standard deviation of each stain."""
        mean = self._take(named("mean", STAINS))
        variance = self._variance(self._take(named("square0", STAINS)), mean)
        return [
            Block(named("mean", STAINS), mean),
            Block(named("deviation", STAINS), self._graph.node("Sqrt", variance)),
        ]

    def hue(self) -> list[Block]:
        """Mean and standard deviation in the hue plane."""
        mean = self._take(("hue_mean_x", "hue_mean_y"))
        variance = self._variance(self._take(("hue_square_x", "hue_square_y")), mean)
        return [
            Block(("hue_mean_x", "hue_mean_y"), mean),
            Block(("hue_deviation_x", "hue_deviation_y"), self._graph.node("Sqrt", variance)),
        ]

    def shares(self) -> Block:
        """Square roots of the histograms' shares."""
        names = tuple(name for name in self._index if "_bin_" in name)
        # Rounding can take an empty bin's share below 0.
        shares = self._graph.node("Relu", self._take(names))
        return Block(names, self._graph.node("Sqrt", self._plus(shares, SHARE_FLOOR)))

    def spread(self, level: int) -> list[Block]:
        """Variance of each stain's means over boxes, and correlation of hematoxylin with eosin."""
        mean = self._take(named("mean", STAINS))
        variance = self._variance(self._take(named(f"square{level}", STAINS)), mean)
        two = range(len(TEXTURE_STAINS))
        mean_product, variance_product = (
            product_of_two(self._graph, self._graph.pick(tensor, two)) for tensor in (mean, variance)
        )
        covariance = self._graph.node("Sub", self._take((f"product{level}",)), mean_product)
        return [
            Block(named(f"variance{level}", STAINS), self._log_over(variance, len(STAINS), VARIANCE_FLOOR)),
            Block((f"correlation{level}",), self._over_root(covariance, variance_product, VARIANCE_FLOOR**2)),
        ]

    def texture(self, level: int) -> list[Block]:
        """Energy of the band, dark against light, coherence of window and boxes, alignment of the stains."""
        add = self._graph.node
        xx, yy, xy, band, blob, local = (
            self._take(named(f"{name}{level}", TEXTURE_STAINS))
            for name in ("xx", "yy", "xy", "band", "blob", "anisotropy")
        )
        energy = add("Add", xx, yy)
        floored = self._plus(energy, ENERGY_FLOOR)
        # Dark minus light half: blob - (band - blob).
        dark = add("Sub", self._times(blob, 2.0), band)
        aligned, energies = self._take((f"aligned{level}",)), product_of_two(self._graph, energy)
        values = {
            "band": self._log_over(band, len(TEXTURE_STAINS), ENERGY_FLOOR),
            "blobness": add("Div", dark, self._plus(band, ENERGY_FLOOR)),
            "coherence": add("Div", anisotropy(self._graph, xx, yy, xy), floored),
            "box_coherence": add("Div", local, floored),
        }
        return [
            *(Block(named(f"{name}{level}", TEXTURE_STAINS), value) for name, value in values.items()),
            Block((f"alignment{level}",), self._over_root(aligned, energies, ENERGY_FLOOR**2)),
        ]

    def _take(self, names: Sequence[str]) -> str:
        return self._graph.pick(self._tensor, [self._index[name] for name in names])

    def _times(self, tensor: str, factor: float) -> str:
        return self._graph.node("Mul", tensor, self._graph.floats(factor))

    def _plus(self, tensor: str, term: float) -> str:
        return self._graph.node("Add", tensor, self._graph.floats(term))

    def _variance(self, square: str, mean: str) -> str:
        """``E[x²] - E[x]²``, which rounding can take below 0."""
        return self._graph.node("Relu", self._graph.node("Sub", square, self._graph.square(mean)))

    def _log_over(self, energy: str, n_entries: int, floor: float) -> str:
        """``log(1 + energy / floor)``: 0 where there is nothing."""
        # ONNX Runtime computes logarithms several at once, and what is left over otherwise: a whole number of
        # vectors a window, and none depends on how many windows there are.
        filled = self._graph.node("Pad", energy, self._graph.ints([0, 0, 0, _VECTOR - n_entries]))
        logarithms = self._graph.node("Log", self._plus(self._times(filled, 1.0 / floor), 1.0))
        return self._graph.cut(logarithms, [1], [0], [n_entries])

    def _over_root(self, value: str, square: str, floor: float) -> str:
        """``value / sqrt(square + floor)``."""
        return self._graph.node("Div", value, self._graph.node("Sqrt", self._plus(square, floor)))
