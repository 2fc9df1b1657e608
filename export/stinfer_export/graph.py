"""The ONNX graph of a backbone: pixels as they are stored in, embedding and map of cells out."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from stinfer.contract import MODEL_EMBEDDING, MODEL_FEATURES, MODEL_INPUT, ModelCard, moment_outputs
from stinfer.errors import ExtraMissingError
from stinfer_export.errors import BackboneUnsupportedError
from stinfer_export.grouped import merge_small_groups
from stinfer_export.registry import BackboneSpec

try:
    import onnx
    import onnxscript  # noqa: F401  # torch.onnx needs it, and would say so late and at length
    import torch
    from timm.models.vgg import ConvMlp
except ImportError as missing:
    raise ExtraMissingError(missing.name or "torch", "export", "converting a backbone") from missing

logger = logging.getLogger(__name__)

# ONNX Runtime 1.17 reads both; the exporter itself would write the newest it knows.
OPSET = 18
IR_VERSION = 8
PRODUCER = "stinfer-export"

# One file, with no data beside it, is a protobuf message, and those end here.
MAX_FILE_BYTES = 2**31 - 1

# Cells of the map in the probe that finds its layout. Unequal, and no number of channels of a network.
_PROBE_CELLS = (8, 10)
_PROBE_CELL_PX = 32

# Pixels from one place to the next of the stages whose mean squares are an output.
STAGE_REDUCTIONS = (4, 8, 16)


@dataclass(frozen=True)
class Stage:
    """An earlier map of a network.

    Parameters
    ----------
    module : name of the module that gives it
    channels : numbers per place
    reduction : pixels from one place to the next
    """

    module: str
    channels: int
    reduction: int


@dataclass(frozen=True)
class FeatureMap:
    """What a network's map of cells looks like.

    Parameters
    ----------
    channels : numbers per cell, of the last map
    stride : pixels from one cell to the next
    stages : earlier maps whose mean squares are an output too
    """

    channels: int
    stride: int
    stages: tuple[Stage, ...] = ()


class BackboneGraph(torch.nn.Module):
    """What is written: pixels as they are stored in, embedding (and map) out.

    Parameters
    ----------
    backbone : timm network without a classifier
    spec : its normalisation
    feature_map : the map that is an output; None for none
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, backbone: torch.nn.Module, spec: BackboneSpec, feature_map: FeatureMap | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.feature_map = feature_map
        std = torch.tensor(spec.std, dtype=torch.float64)
        mean = torch.tensor(spec.mean, dtype=torch.float64)
        self.register_buffer("mean", (mean * 255).float().reshape(3, 1, 1))
        self.register_buffer("scale", (1 / (std * 255)).float().reshape(3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Normalise and encode.

        Parameters
        ----------
        pixels : (n, height, width, 3), uint8, RGB

        Returns
        -------
        embedding (n, dim); with it, where there is a map, features (n, channels, height / stride,
        width / stride) and, of each stage, the mean squares of its channels over a cell
        """
        # Moved while a pixel is still one byte per channel.
        images = (pixels.permute(0, 3, 1, 2).float() - self.mean) * self.scale
        if self.feature_map is None:
            return self.backbone(images)  # type: ignore[no-any-return]
        with watching(self.backbone, self.feature_map.stages) as seen:
            features = self.backbone.forward_features(images)  # type: ignore[operator]
        embedding = self.backbone.forward_head(features)  # type: ignore[operator]
        squares = []
        for stage in self.feature_map.stages:
            side = self.feature_map.stride // stage.reduction
            squares.append(torch.nn.functional.avg_pool2d(seen[stage.module] ** 2, side))
        return embedding, features, *squares


@contextmanager
def watching(backbone: torch.nn.Module, stages: Sequence[Stage]) -> Iterator[dict[str, torch.Tensor]]:
    """Keep what some modules give while the network runs, by their names."""
    seen: dict[str, torch.Tensor] = {}
    handles = []
    for stage in stages:

        def keep(_: torch.nn.Module, __: object, given: torch.Tensor, name: str = stage.module) -> None:
            seen[name] = given

        handles.append(backbone.get_submodule(stage.module).register_forward_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def find_stages(backbone: torch.nn.Module, stride: int) -> tuple[Stage, ...]:
    """Find the stages whose texture a cell is told by: the last of each reduction of 4, 8 and 16.

    A network that timm does not describe so has none.

    Parameters
    ----------
    backbone : timm network
    stride : of its last map
    """
    return tuple(s for s in _described_stages(backbone) if s.reduction < stride and stride % s.reduction == 0)


def _described_stages(backbone: torch.nn.Module) -> tuple[Stage, ...]:
    described = getattr(backbone, "feature_info", None)
    described = getattr(described, "info", described)
    if not isinstance(described, list):
        return ()
    found = {
        int(one["reduction"]): Stage(one["module"], int(one["num_chs"]), int(one["reduction"]))
        for one in described
    }
    return tuple(found[r] for r in STAGE_REDUCTIONS if r in found)


def find_feature_map(backbone: torch.nn.Module, spec: BackboneSpec) -> FeatureMap | None:
    """Find whether `forward_features` gives (n, channels, height / stride, width / stride).

    Convolutional networks do. Transformers give a list of tokens, or channels last; those, and
    networks that take one size only, have no map.
    """
    if spec.fixed_size:
        return None
    height_px, width_px = (cells * _PROBE_CELL_PX for cells in _PROBE_CELLS)
    images = torch.zeros(1, 3, height_px, width_px)
    with torch.inference_mode(), watching(backbone, _described_stages(backbone)) as seen:
        features = backbone.forward_features(images)  # type: ignore[operator]
    if not isinstance(features, torch.Tensor) or features.ndim != 4:
        return None
    _, channels, rows, columns = features.shape
    stride = height_px // rows
    if rows * stride != height_px or columns * stride != width_px:
        return None
    stages = find_stages(backbone, stride)
    expected = {s.module: (1, s.channels, height_px // s.reduction, width_px // s.reduction) for s in stages}
    if any(name not in seen or seen[name].shape != shape for name, shape in expected.items()):
        stages = ()  # channels last, as of a transformer's stages
    return FeatureMap(channels, stride, stages)


def export_graph(backbone: torch.nn.Module, spec: BackboneSpec, checkpoint_sha256: str) -> onnx.ModelProto:
    """Make the ONNX model of a network that has its weights.

    Raises
    ------
    BackboneUnsupportedError
        Torch cannot express it, it is larger than one file may be, or it gives no vector per patch.
    """
    n_bytes = sum(parameter.numel() * 4 for parameter in backbone.parameters())
    if n_bytes > MAX_FILE_BYTES:
        raise BackboneUnsupportedError(spec.name, f"its {n_bytes / 2**30:.1f} GiB do not fit one ONNX file")
    feature_map = find_feature_map(backbone, spec)
    if feature_map is None:
        logger.warning("%s has no map of cells: its file has no output %r", spec.name, MODEL_FEATURES)
    graph = BackboneGraph(backbone, spec, feature_map).eval()
    height_px, width_px = spec.input_size_px, spec.input_size_px
    if not spec.fixed_size:
        height_px, width_px = height_px + 32, width_px + 64
    example = torch.zeros(2, height_px, width_px, 3, dtype=torch.uint8)
    with torch.inference_mode():
        given = graph(example)
        embedding = given if feature_map is None else given[0]
    if embedding.ndim != 2:
        cause = f"it gives {embedding.ndim - 1} dimensions per patch, not one"
        raise BackboneUnsupportedError(spec.name, cause)

    outputs = [MODEL_EMBEDDING]
    if feature_map is not None:
        outputs += [MODEL_FEATURES, *moment_outputs(len(feature_map.stages))]
    model = _to_onnx(graph, example, outputs, spec)
    card = ModelCard(
        backbone=spec.name,
        input_size_px=spec.input_size_px,
        dim=int(embedding.shape[1]),
        channels=0 if feature_map is None else feature_map.channels,
        stride=0 if feature_map is None else feature_map.stride,
        checkpoint_sha256=checkpoint_sha256,
        precision="fp32",
        moments=() if feature_map is None else tuple(stage.channels for stage in feature_map.stages),
    )
    merge_small_groups(model)
    _strip(model)
    _name_axes(model, card)
    onnx.helper.set_model_props(model, card.to_props())
    return model


def _to_onnx(
    graph: BackboneGraph, example: torch.Tensor, outputs: list[str], spec: BackboneSpec
) -> onnx.ModelProto:
    sides = (0,) if spec.fixed_size else (0, 1, 2)
    try:
        with warnings.catch_warnings(), _any_size(graph):
            # The exporter warns of its own inner workings; what counts is measured by `parity`.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                input_names=[MODEL_INPUT],
                output_names=outputs,
                opset_version=OPSET,
                dynamic_shapes=(dict.fromkeys(sides, torch.export.Dim.DYNAMIC),),
                verbose=False,
            )
    except (RuntimeError, ValueError) as error:
        cause = str(error).strip().partition("\n")[0]
        raise BackboneUnsupportedError(spec.name, f"torch.onnx does not express it ({cause})") from error
    if program is None:  # the signature allows it; with dynamo=True it does not happen
        raise BackboneUnsupportedError(spec.name, "torch.onnx gave no model")
    return program.model_proto


def _strip(model: onnx.ModelProto) -> None:
    """Take out what says where and by what the graph was traced; it would differ from machine to machine."""
    for field in ("producer_version", "doc_string", "metadata_props"):
        model.ClearField(field)
    model.ir_version = IR_VERSION
    model.producer_name = PRODUCER
    _strip_graph(model.graph)
    model.graph.name = "backbone"


def _strip_graph(graph: onnx.GraphProto) -> None:
    graph.ClearField("value_info")
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        attribute.ClearField("doc_string")
        # Even reading the field `g` in passing could make an attribute of another type a graph.
        if attribute.HasField("g"):
            _strip_graph(attribute.g)


def _name_axes(model: onnx.ModelProto, card: ModelCard) -> None:
    """Give the axes the names of the format in place of the tracer's symbols."""
    names = {
        MODEL_INPUT: ("n", "height", "width", None),
        MODEL_EMBEDDING: ("n", None),
        **dict.fromkeys(
            [MODEL_FEATURES, *moment_outputs(len(card.moments))],
            ("n", None, f"height/{card.stride}", f"width/{card.stride}"),
        ),
    }
    for value in (*model.graph.input, *model.graph.output):
        for axis, axis_name in zip(value.type.tensor_type.shape.dim, names[value.name], strict=True):
            if axis_name is not None and not axis.HasField("dim_value"):
                axis.dim_param = axis_name


@contextmanager
def _any_size(backbone: torch.nn.Module) -> Iterator[None]:
    """Let the head of a VGG be traced for every size; the network itself stays as timm made it.

    Timm asks whether the map is smaller than 7 x 7 and only then stretches it: a question that a graph
    answers once, for the size it was traced with.
    """
    heads: list[Any] = [module for module in backbone.modules() if isinstance(module, ConvMlp)]
    convolutions = [(head, name, getattr(head, name)) for head in heads for name in ("fc1", "fc2")]
    for head, name, convolution in convolutions:
        setattr(head, name, _as_linear(convolution))
    for head in heads:
        head.forward = functools.partial(_conv_mlp, head)
    try:
        yield
    finally:
        for head in heads:
            del head.forward
        for head, name, convolution in convolutions:
            setattr(head, name, convolution)


def _as_linear(convolution: Any) -> torch.nn.Linear:
    """Make the layer that computes of a window what a convolution does, with the same weights."""
    weight = convolution.weight.detach().flatten(1)
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    linear.bias = convolution.bias
    return linear.eval()


def _conv_mlp(head: Any, cells: torch.Tensor) -> torch.Tensor:
    """Compute what `ConvMlp.forward` computes in evaluation, with no question of the size.

    Its two convolutions are written as products of matrices, one row per window of the map: a convolution
    reads its weights, nine tenths of the file, for every patch, and a product once for several.

    Parameters
    ----------
    head : the `ConvMlp`, its layers linear
    cells : (n, channels, rows, columns)

    Returns
    -------
    (n, dim, max(rows, 7) - 6, max(columns, 7) - 6)
    """
    side = head.input_kernel_size
    stretching = [_stretching(n_cells, side) for n_cells in cells.shape[-2:]]
    stretched = stretching[0] @ cells @ stretching[1].T
    n_rows, n_columns = (matrix.shape[0] - side + 1 for matrix in stretching)
    in_window = torch.arange(side)
    of_rows = (torch.arange(n_rows).unsqueeze(1) + in_window).flatten()
    of_columns = (torch.arange(n_columns).unsqueeze(1) + in_window).flatten()
    windows = stretched.index_select(2, of_rows).index_select(3, of_columns)
    n, channels = cells.shape[:2]
    windows = windows.reshape(n, channels, n_rows, side, n_columns, side)
    windows = windows.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels * side**2)
    found: torch.Tensor = head.act2(head.fc2(head.act1(head.fc1(windows))))
    return found.reshape(n, n_rows, n_columns, found.shape[1]).permute(0, 3, 1, 2).contiguous()


def _stretching(size: int, minimum: int) -> torch.Tensor:
    """Adaptive average pooling along one axis as a matrix; the identity from `minimum` on.

    Returns
    -------
    (max(size, minimum), size), rows sum to 1
    """
    n_out: Any = torch.sym_max(size, minimum)  # symbolic while it is traced
    out = torch.arange(n_out).unsqueeze(1)
    cell = torch.arange(size).unsqueeze(0)
    first = out * size // n_out
    last = ((out + 1) * size - 1) // n_out
    inside = ((cell >= first) & (cell <= last)).float()
    matrix: torch.Tensor = inside / inside.sum(dim=1, keepdim=True)
    return matrix
