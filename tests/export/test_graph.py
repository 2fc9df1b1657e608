"""What becomes of a network's outputs, and which networks become nothing."""

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
