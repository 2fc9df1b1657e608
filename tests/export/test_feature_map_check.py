"""What is measured of a backbone's map: networks written by hand, whose cells see what is known."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from stinfer.contract import MAX_HALO_CELLS, MapTraits, ModelCard
from stinfer.onnx_guard import find_forbidden
from stinfer_export.errors import ParityError
from stinfer_export.feature_map_check import HALOS_TRIED, describe_map, measure_map
from stinfer_export.stain_texture import write_stain_texture
from stinfer_export.stain_texture_graph import GraphBuilder
from stinfer_export.tissue_noise import glass_patch, nuclei_patch, tissue_patch

STRIDE = 8
CARD = ModelCard("toy", 32, 3, 3, STRIDE, "", "fp32")


def write_model(add_features, *, height="height", embedding_op="ReduceMean"):
    """Write a network whose `features` are what the function makes of (n, 3, height, width) floats."""
    graph = GraphBuilder()
    images = graph.node("Cast", graph.node("Transpose", "pixels", perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    features = add_features(graph, images)
    graph.name_output(features, "features")
    graph.name_output(graph.node(embedding_op, features, axes=[2, 3], keepdims=0), "embedding")
    model = graph.to_model(
        "toy",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", height, "width", 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("embedding", "features")],
    )
    return model.SerializeToString()


def filtered(graph, tensor, kernel, stride=1, before=(0, 0)):
    """Correlate every channel with a kernel; output (0, 0) begins `before` rows and columns outside."""
    kernel = np.asarray(kernel, float)
    after = [side - stride - start for side, start in zip(kernel.shape, before, strict=True)]
    weights = graph.floats(np.tile(kernel, (3, 1, 1, 1)))
    return graph.node("Conv", tensor, weights, group=3, strides=[stride] * 2, pads=[*before, *after])


def box_over_cells(reach):
    """Average cells of 8 x 8 px, then each with its neighbors up to `reach` cells away."""
    side = 2 * reach + 1

    def add_features(graph, images):
        cells = graph.average(images, STRIDE)
        return filtered(graph, cells, np.full((side, side), side**-2.0), before=(reach, reach))

    return add_features


# Halo


@pytest.mark.parametrize("reach", [0, 1, 2, 7, 12])
def test_the_halo_is_what_a_cell_sees_around_it(reach):
    found = measure_map(write_model(box_over_cells(reach)), CARD)

    assert found == dataclasses.replace(CARD, map_traits=MapTraits(reach, (0.0, 0.0)), map_refusal="")


def test_a_network_that_sees_further_than_is_tried_is_refused():
    found = measure_map(write_model(box_over_cells(13)), CARD)

    assert found.map_traits is None
    assert "on more than 12 cells around" in found.map_refusal
    assert HALOS_TRIED[-1] == 12 <= MAX_HALO_CELLS


def test_what_is_less_than_the_tolerance_is_not_seen():
    """A cell takes 4 % or 0.4 % from its left neighbor: 1 % lies between."""

    def leaky(share):
        def add_features(graph, images):
            kernel = [[0, 0, 0], [share, 1 - share, 0], [0, 0, 0]]
            return filtered(graph, graph.average(images, STRIDE), kernel, before=(1, 1))

        return write_model(add_features)

    # Alone, the neighbor is 0 in place of about 200: the cell differs by its share.
    assert measure_map(leaky(0.04), CARD).map_traits.halo_cells == 1
    assert measure_map(leaky(0.004), CARD).map_traits.halo_cells == 0


def test_a_network_that_averages_its_image_is_refused():
    def add_features(graph, images):
        cells = graph.average(images, STRIDE)
        return graph.node("Add", cells, graph.node("ReduceMean", cells, axes=[2, 3], keepdims=1))

    found = measure_map(write_model(add_features), CARD)

    assert (found.map_traits, found.dim) == (None, 3)
    told = re.fullmatch(
        r"its features depend on the whole image, or on more than 12 cells around \(the same pixels in two "
        r"contexts differ by (\d+)%\), as with squeeze-excitation or attention",
        found.map_refusal,
    )
    # Of 30 x 30 cells 224 are context, about 100 of 255 gray levels darker or lighter, over 2 x 200.
    assert 3 < int(told[1]) < 12


# Networks of timm


def export_network(name):
    """Export a network with random weights, its normalisation measured on a batch, as training would.

    Without that, most of these networks begin with blocks that add nothing, and see no further than a cell.
    """
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    pytest.importorskip("onnxscript")
    from stinfer_export.graph import export_graph
    from stinfer_export.registry import resolve

    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=0)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias, std=0.2)
        norm.momentum = 1.0
    if norms:
        with torch.no_grad():
            network.train()(torch.randn(4, 3, 96, 96))
    return export_graph(network.eval(), resolve(name), "").SerializeToString()


def test_squeeze_excitation_is_refused():
    found = measure_map(export_network("test_efficientnet.r160_in1k"), dataclasses.replace(CARD, stride=32))

    assert "depend on the whole image" in found.map_refusal


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "halo_cells", "offset_px"),
    [
        ("vgg16", 3, 0),
        ("densenet121", 7, -2),
        ("resnet18", 6, -15),
        ("resnet50", 5, -15),
        ("resnext50d_32x4d", 5, -9),
    ],
)
def test_the_maps_of_the_papers_five(name, halo_cells, offset_px):
    """Half a pixel to the left is what a 3 x 3 convolution of stride 2, padded by 1, adds.

    Five of them in a row (ResNet) make -0.5 * (1 + 2 + 4 + 8 + 16) = -15.5 px; pooling by 2 x 2 (VGG)
    makes none, and the others do both.
    """
    found = measure_map(export_network(name), dataclasses.replace(CARD, stride=32)).map_traits

    assert abs(found.halo_cells - halo_cells) <= 1
    assert np.abs(np.subtract(found.offset_px, offset_px)).max() <= 4


# Offset


@pytest.mark.parametrize(
    ("columns", "rows", "offset_px"),
    [
        (slice(0, 4), slice(0, 8), (-2.0, 0.0)),
        (slice(0, 8), slice(6, 8), (0.0, 3.0)),
        (slice(4, 8), slice(0, 2), (2.0, -3.0)),
        (slice(2, 6), slice(2, 6), (0.0, 0.0)),
    ],
)
def test_the_offset_is_to_the_middle_of_what_a_cell_sees(columns, rows, offset_px):
    kernel = np.zeros((STRIDE, STRIDE))
    kernel[rows, columns] = 1

    model = write_model(lambda graph, images: filtered(graph, images, kernel, STRIDE))

    assert measure_map(model, CARD).map_traits == MapTraits(0, offset_px)


def test_cells_may_look_at_their_neighbors_place():
    """Cells begin 8 px further left and 4 px further up than their own 8 x 8 px."""
    kernel = np.zeros((STRIDE + 4, STRIDE + 8))
    kernel[:STRIDE, :STRIDE] = 1

    model = write_model(lambda graph, images: filtered(graph, images, kernel, STRIDE, before=(4, 8)))

    assert measure_map(model, CARD).map_traits == MapTraits(1, (-8.0, -4.0))


def test_the_mean_place_is_weighted_with_energy():
    """Weights 1 and 3 left and right: (1 * -2 + 9 * 2) / 10 = 1.6, to half a pixel."""
    kernel = np.repeat([[1.0] * 4 + [3.0] * 4], STRIDE, axis=0)

    model = write_model(lambda graph, images: filtered(graph, images, kernel, STRIDE))

    assert measure_map(model, CARD).map_traits == MapTraits(0, (1.5, 0.0))


def test_cells_that_look_too_far_away_are_refused():
    kernel = np.zeros((32, 32 + 72))
    kernel[:, :32] = 1

    model = write_model(lambda graph, images: filtered(graph, images, kernel, 32, before=(0, 72)))

    found = measure_map(model, dataclasses.replace(CARD, stride=32))
    assert found.map_traits is None
    assert found.map_refusal == "its cells see what is -72 x 0 px away from them, more than 64"


# What cannot be measured


def test_a_network_without_features_has_no_map():
    card = dataclasses.replace(CARD, channels=0, stride=0)

    assert measure_map(b"", card) == dataclasses.replace(card, map_refusal="it has no map of cells")


@pytest.mark.parametrize(
    ("added", "reason"),
    [
        (0.0, "its features are zero or not finite on painted tissue"),
        (np.nan, "its features are zero or not finite on painted tissue"),
        (1.0, "its features do not depend on the pixels near them"),
    ],
)
def test_features_that_say_nothing_are_refused(added, reason):
    def add_features(graph, images):
        nothing = graph.node("Mul", graph.average(images, STRIDE), graph.floats(0.0))
        return graph.node("Add", nothing, graph.floats(added))

    assert measure_map(write_model(add_features), CARD).map_refusal == reason


def test_a_model_that_does_not_load_is_found():
    model = write_model(lambda graph, images: graph.node("Nonsense", images))

    with pytest.raises(ParityError, match=r"of toy .*ONNX Runtime does not load it"):
        measure_map(model, CARD)


def test_a_model_that_does_not_run_is_found():
    with pytest.raises(ParityError, match="ONNX Runtime fails on an image of 160 x 160 px"):
        measure_map(write_model(box_over_cells(0), height=32), CARD)


# How it is measured


def test_only_what_features_need_is_run():
    model = write_model(box_over_cells(1), embedding_op="Nonsense")

    assert measure_map(model, CARD).map_traits == MapTraits(1, (0.0, 0.0))


def test_what_a_branch_needs_is_run():
    def add_features(graph, images):
        cells = box_over_cells(1)(graph, images)
        branches = {
            name: helper.make_graph(
                [helper.make_node("Identity", [cells], [name])],
                name,
                [],
                [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
            )
            for name in ("then_branch", "else_branch")
        }
        condition = graph.node("Cast", graph.floats(1.0), to=TensorProto.BOOL)
        return graph.node("If", condition, **branches)

    assert measure_map(write_model(add_features), CARD).map_traits == MapTraits(1, (0.0, 0.0))


def test_contexts_look_different():
    rng = np.random.default_rng(0)
    tissue, nuclei, glass = (
        paint(rng, 256, 256).reshape(-1, 3).astype(float)
        for paint in (tissue_patch, nuclei_patch, glass_patch)
    )

    assert np.abs(glass.mean(axis=0) - [240, 238, 242]).max() < 1
    assert glass.std(axis=0).max() < 4
    # Darker by half the way from eosin's red (222) to hematoxylin's (112), and no glass in it.
    assert nuclei[:, 0].mean() < tissue[:, 0].mean() - 30
    assert nuclei[:, 1].max() < 180


def test_torch_is_not_needed():
    code = (
        "import sys; import stinfer_export.feature_map_check; "
        "sys.exit(', '.join({'torch', 'torchvision', 'timm'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("traits", "refusal", "said"),
    [
        (MapTraits(7, (-5.0, -4.5)), "", "map: halo 7 cells, offset -5 x -4.5 px"),
        (MapTraits(1, (0.0, 0.0), b"head"), "", "map: halo 1 cell, offset 0 x 0 px"),
        (None, "it has no map of cells", "map: no, because it has no map of cells; patch mode only"),
    ],
)
def test_the_card_is_said_in_a_line(traits, refusal, said):
    assert describe_map(dataclasses.replace(CARD, map_traits=traits, map_refusal=refusal)) == said


# Our own backbone


@pytest.fixture(scope="module")
def stain_texture(tmp_path_factory):
    path = tmp_path_factory.mktemp("stain") / "stain_texture.onnx"
    return write_stain_texture(path), path.read_bytes()


def test_stain_texture_is_as_it_says(stain_texture):
    card, model = stain_texture

    measured = measure_map(model, card).map_traits

    assert measured == MapTraits(1, (0.0, 0.0))
    assert (card.map_traits.halo_cells, card.map_traits.offset_px) == (1, (0.0, 0.0))


def test_the_head_turns_means_of_features_into_embeddings(stain_texture):
    card, model = stain_texture
    pixels = np.stack([tissue_patch(np.random.default_rng(seed), 96, 128) for seed in (1, 2)])
    whole = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    embedding, features = whole.run(["embedding", "features"], {"pixels": pixels})

    head = onnxruntime.InferenceSession(card.map_traits.head, providers=["CPUExecutionProvider"])

    (means,) = head.get_inputs()
    assert (means.name, means.type, means.shape) == ("means", "tensor(float)", ["n", 94])
    (found,) = head.run(["embedding"], {"means": features.mean(axis=(2, 3))})
    assert found.shape == (2, 78)
    assert found == pytest.approx(embedding, abs=1e-4)
    # What g does is not linear: the mean of the cells' own embeddings is another.
    (of_cells,) = head.run(["embedding"], {"means": features[0].reshape(94, -1).T.copy()})
    assert np.abs(of_cells.mean(axis=0) - embedding[0]).max() > 0.1


def test_the_head_is_a_file_like_any_model(stain_texture):
    head = stain_texture[0].map_traits.head

    assert find_forbidden(head) is None
    model = onnx.load_from_string(head)
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, [(o.domain, o.version) for o in model.opset_import]) == (8, [("", 17)])
    assert (model.producer_name, model.doc_string, len(model.metadata_props)) == ("stinfer", "", 0)
    assert len(head) < 20_000
