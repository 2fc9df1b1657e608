"""The search for a good model in eight bits: how ranges are cut, and which layers stay in floating point."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import onnx

from stinfer_export.errors import QuantizationError
from stinfer_export.precision import qdq
from stinfer_export.precision.channelwise import scale_by_convolution
from stinfer_export.precision.fidelity import Fidelity, compare
from stinfer_export.precision.first_layer import widen_first_layer
from stinfer_export.precision.ranges import METHODS, Method, count_values
from stinfer_export.precision.session import encode, open_session
from stinfer_export.precision.tissue_sample import Sample

logger = logging.getLogger(__name__)

# Of the patches held out, those that candidates are compared on.
N_COMPARED = 96
# Layers from the input on that may stay in floating point, and the part of all multiplications they may take.
# ONNX Runtime would quantise the weights of any other, of all channels alike, because what it reads was
# quantised (its "weight and bias quantisation"): only from the input on does a layer stay as it is.
MOST_FIRST_LAYERS = 4
MOST_IN_FLOAT = 0.05
# A layer is worth that where what is lost becomes less by this part.
LEAST_GAIN = 0.1


@dataclass(frozen=True)
class Int8Model:
    """A model in eight bits.

    Parameters
    ----------
    model : the ONNX file; its metadata are still those of the original
    method : that ranges were chosen by
    in_float : numbers of layers that stay in floating point, and of all
    fidelity : on all tissue that was held out
    """

    model: bytes
    method: Method
    in_float: tuple[int, int]
    fidelity: Fidelity


def quantize_backbone(original: onnx.ModelProto, sample: Sample) -> Int8Model:
    """Make the model in eight bits that says most of what the original says.

    1. Write batch normalisation that is left, and that of pixels, as convolutions, and the first convolution
       in its faster form; see `stinfer_export.precision.channelwise` and `first_layer`.
    2. Count the values of all tensors on the calibration patches.
    3. Cut their ranges in three ways, and keep the one of the best `Fidelity.score` on patches held out.
    4. Leave the first layers in floating point, one more as long as that is worth it.

    Parameters
    ----------
    original : in floating point, batch normalisation folded as torch's exporter does
    sample : patches of the backbone's own size

    Raises
    ------
    QuantizationError
        ONNX Runtime does not run it, or there is nothing to quantise.
    """
    named = scale_by_convolution(qdq.name_nodes(original))
    if sample.calibration.shape[1] % 2 == 0:
        named = widen_first_layer(named)
    always = qdq.pooled_layers(named)
    if set(qdq.find_layers(named)) <= always:
        cause = "it has no layers that could be in eight bits"
        raise QuantizationError(cause)
    tensors = qdq.tensors_between(named, qdq.quantized_nodes(named, always))
    logger.info("calibrating %d tensors on %d patches", len(tensors), len(sample.calibration))
    histograms = count_values(named, tensors, sample.calibration)
    truth = encode(open_session(original.SerializeToString()), sample.held_out)
    some = {name: values[:N_COMPARED] for name, values in truth.items()}

    def fidelity(found: onnx.ModelProto) -> Fidelity:
        session = open_session(found.SerializeToString(deterministic=True))
        return compare(some, encode(session, sample.held_out[:N_COMPARED]))

    candidates = {}
    for method in METHODS:
        ranges = {name: one.range(method) for name, one in histograms.items()}
        candidates[method] = (ranges, fidelity(qdq.quantize(named, ranges, always)).score)
        logger.info("ranges by %s: score %.4f", method, candidates[method][1])
    best = max(METHODS, key=lambda method: candidates[method][1])
    ranges, score = candidates[best]

    costs = qdq.multiplications(named, {name: one.per_patch for name, one in histograms.items()}, always)
    first: list[str] = []
    in_float = set(always)
    for name in list(costs)[: min(MOST_FIRST_LAYERS, len(costs) - 1)]:
        first.append(name)
        if sum(costs[one] for one in first) > MOST_IN_FLOAT * sum(costs.values()):
            break
        tried = fidelity(qdq.quantize(named, ranges, always | set(first))).score
        logger.info("first %d layers in floating point: score %.4f", len(first), tried)
        if 1 - tried <= (1 - LEAST_GAIN) * (1 - score):
            in_float, score = always | set(first), tried
    model = qdq.quantize(named, ranges, in_float).SerializeToString(deterministic=True)
    found = compare(truth, encode(open_session(model), sample.held_out))
    return Int8Model(model, best, (len(in_float), len(qdq.find_layers(named))), found)
