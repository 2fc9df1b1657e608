"""What becomes of a network's outputs, and which networks become nothing."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
pytest.importorskip("onnxscript")

from stinfer_export import graph  # noqa: E402  # after the skips
from stinfer_export.errors import BackboneUnsupportedError  # noqa: E402
from stinfer_export.registry import resolve  # noqa: E402

TINY = "test_resnet.r160_in1k"


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((1, 64, 8, 10), graph.FeatureMap(64, 32)),
        ((1, 64, 16, 20), graph.FeatureMap(64, 16)),
        ((1, 8, 10, 64), None),
        ((1, 80, 64), None),
        ((1, 64, 9, 11), None),
    ],
)
def test_a_map_is_known_by_its_layout(shape, found):
    class Fake(torch.nn.Module):
        def forward_features(self, images):
            return torch.zeros(shape)

    assert graph.find_feature_map(Fake(), resolve("resnet18")) == found


class Staged(torch.nn.Module):
    """Four maps of 4, 8, 16 and 32 px: pooled pixels, as many channels as asked for."""

    def __init__(self, *, channels_last=False):
        super().__init__()
        self.quarter, self.eighth, self.sixteenth, self.last = (
            torch.nn.Conv2d(n_in, n_out, side, stride=side)
            for n_in, n_out, side in ((3, 5, 4), (5, 6, 2), (6, 7, 2), (7, 8, 2))
        )
        if channels_last:
            self.quarter.forward = lambda images: torch.zeros(
                1, images.shape[2] // 4, images.shape[3] // 4, 5
            )
            self.eighth.forward = lambda _: torch.zeros(1, 6, 32, 40)
        names = (("quarter", 5, 4), ("eighth", 6, 8), ("sixteenth", 7, 16), ("last", 8, 32))
        self.feature_info = [{"module": m, "num_chs": c, "reduction": r} for m, c, r in names]

    def forward_features(self, images):
        return self.last(self.sixteenth(self.eighth(self.quarter(images))))


STAGES = (graph.Stage("quarter", 5, 4), graph.Stage("eighth", 6, 8), graph.Stage("sixteenth", 7, 16))


def test_stages_are_the_maps_of_4_8_and_16_px():
    assert graph.find_feature_map(Staged(), resolve("resnet18")) == graph.FeatureMap(8, 32, STAGES)


def test_stages_with_channels_last_are_none():
    found = graph.find_feature_map(Staged(channels_last=True), resolve("resnet18"))

    assert found == graph.FeatureMap(8, 32)


def _described(*stages):
    network = torch.nn.Module()
    network.feature_info = [{"module": m, "num_chs": c, "reduction": r} for m, c, r in stages]
    return network


@pytest.mark.parametrize(
    ("stages", "stride", "found"),
    [
        # Of several with one reduction the last; 2 px is too fine, and 32 px is the cell itself.
        (
            [("a", 8, 2), ("b", 9, 4), ("c", 10, 4), ("d", 11, 8), ("e", 12, 32)],
            32,
            [("c", 10, 4), ("d", 11, 8)],
        ),
        ([("b", 9, 4), ("d", 11, 8), ("e", 12, 16)], 16, [("b", 9, 4), ("d", 11, 8)]),
        # A cell of 12 px holds whole places of 4 px, but not of 8.
        ([("b", 9, 4), ("d", 11, 8)], 12, [("b", 9, 4)]),
        ([], 32, []),
    ],
)
def test_stages_by_their_reduction(stages, stride, found):
    assert graph.find_stages(_described(*stages), stride) == tuple(graph.Stage(*one) for one in found)


def test_a_network_that_is_not_described_has_no_stages():
    assert graph.find_stages(torch.nn.Identity(), 32) == ()


def test_watching_leaves_the_network_as_it_was():
    network = Staged()
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))

    def halt(_, images):
        network.forward_features(*images)
        raise RuntimeError("halt")  # noqa: EM101

    with torch.no_grad():
        network.register_forward_pre_hook(halt)
        with pytest.raises(RuntimeError, match="halt"), graph.watching(network, STAGES) as seen:
            network(images)

    assert list(seen) == ["quarter", "eighth", "sixteenth"]
    with torch.no_grad():
        assert torch.equal(seen["eighth"], network.eighth(network.quarter(images)))
    assert not any(module._forward_hooks for module in network.modules())


def test_mean_squares_of_a_cell_by_hand():
    class Plain(torch.nn.Module):
        """Pixels averaged over 4 px, and over 8."""

        def __init__(self):
            super().__init__()
            self.stage, self.last = torch.nn.AvgPool2d(4), torch.nn.AvgPool2d(2)

        def forward_features(self, images):
            return self.last(self.stage(images))

        def forward_head(self, features):
            return features.mean(dim=(2, 3))

    spec = dataclasses.replace(resolve("resnet18"), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    feature_map = graph.FeatureMap(3, 8, (graph.Stage("stage", 3, 4),))
    network = graph.BackboneGraph(Plain(), spec, feature_map).eval()
    # One cell: four places of red 0, 51, 102 and 255, which are 0, 0.2, 0.4 and 1; no green; blue 255.
    pixels = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    pixels[0, :4, 4:, 0], pixels[0, 4:, :4, 0], pixels[0, 4:, 4:, 0] = 51, 102, 255
    pixels[..., 2] = 255

    embedding, features, squares = network(pixels)

    assert features.ravel().tolist() == pytest.approx([0.4, 0, 1])
    assert embedding.ravel().tolist() == pytest.approx([0.4, 0, 1])
    assert squares.ravel().tolist() == pytest.approx([(0.04 + 0.16 + 1) / 4, 0, 1])


def test_a_network_too_large_for_one_file_is_refused(monkeypatch):
    monkeypatch.setattr(graph, "MAX_FILE_BYTES", 1000)
    backbone = timm.create_model(TINY, pretrained=False, num_classes=0)

    with pytest.raises(BackboneUnsupportedError, match="do not fit one ONNX file"):
        graph.export_graph(backbone, resolve(TINY), "")


def test_a_network_that_gives_no_vector_is_refused():
    backbone = timm.create_model(TINY, pretrained=False, num_classes=0, global_pool="").eval()

    with pytest.raises(BackboneUnsupportedError, match="3 dimensions per patch"):
        graph.export_graph(backbone, resolve(TINY), "")


def test_a_network_torch_cannot_express_is_refused():
    class Asking(torch.nn.Module):
        def forward_features(self, images):
            return images if images.sum() > 0 else -images

        def forward_head(self, features):
            return features.mean(dim=(2, 3))

    with pytest.raises(BackboneUnsupportedError, match=r"torch\.onnx does not express it"):
        graph.export_graph(Asking(), resolve("resnet18"), "")


@pytest.mark.parametrize("rows", [1, 3, 6, 7, 9])
@pytest.mark.parametrize("columns", [2, 7, 8])
def test_the_head_of_a_vgg_is_timms_at_every_size(rows, columns):
    head = timm.models.vgg.ConvMlp(in_features=5, out_features=6, kernel_size=7).eval()
    cells = torch.randn(2, 5, rows, columns, generator=torch.Generator().manual_seed(3))
    network = torch.nn.Sequential(head)

    with torch.no_grad():
        truth = network(cells)
        with graph._any_size(network):
            found = network(cells)
        assert torch.equal(network(cells), truth)

    assert head.forward.__func__ is type(head).forward
    assert found.shape == truth.shape
    assert torch.allclose(found, truth, rtol=1e-5, atol=1e-6)
