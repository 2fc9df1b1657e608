"""Checkpoints: every weight is used, or none."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest

pytest.importorskip("timm")
torch = pytest.importorskip("torch")

import timm  # noqa: E402  # after the skips
from safetensors.torch import save_file  # noqa: E402

from stinfer_export import weights  # noqa: E402
from stinfer_export.errors import (  # noqa: E402
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CheckpointUnreadableError,
)

SHARED = Path(os.environ.get("STINFER_DATA", Path(__file__).parents[3] / "shared"))
NAME = "test_resnet.r160_in1k"


@pytest.fixture(scope="module")
def complete():
    """Weights of a tiny network with its classifier."""
    torch.manual_seed(7)
    return timm.create_model(NAME, pretrained=False).state_dict()


@pytest.fixture
def headless():
    torch.manual_seed(8)
    return timm.create_model(NAME, pretrained=False, num_classes=0)


def _same(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("file", ["weights.pth", "pytorch_model.bin", "model.safetensors"])
def test_every_format_gives_the_same_weights(tmp_path, complete, file):
    path = tmp_path / file
    if path.suffix == ".safetensors":
        save_file(complete, path)
    else:
        torch.save(complete, path)

    loaded = weights.load_state_dict(path)

    assert _same({name: loaded[name] for name in complete}, complete)
    assert len(loaded) == len(complete)


def test_the_format_before_zip_is_read(tmp_path, complete):
    torch.save(complete, tmp_path / "old.pth", _use_new_zipfile_serialization=False)

    assert _same(weights.load_state_dict(tmp_path / "old.pth"), complete)


@pytest.mark.parametrize("wrapper", weights.WRAPPERS)
def test_wrapped_weights_are_taken_out(tmp_path, complete, wrapper):
    torch.save({"epoch": 3, "arch": "x", wrapper: OrderedDict(complete)}, tmp_path / "a.pth")

    assert _same(weights.load_state_dict(tmp_path / "a.pth"), complete)


def test_wrappers_may_be_nested_and_names_prefixed(tmp_path, complete):
    prefixed = {f"module._orig_mod.{name}": tensor for name, tensor in complete.items()}
    torch.save({"model": {"state_dict": prefixed}}, tmp_path / "a.pth")

    assert _same(weights.load_state_dict(tmp_path / "a.pth"), complete)


def test_the_average_is_preferred_to_the_last_step(tmp_path, complete):
    last = {name: torch.zeros_like(tensor) for name, tensor in complete.items()}
    torch.save({"state_dict": last, "state_dict_ema": complete}, tmp_path / "a.pth")

    assert _same(weights.load_state_dict(tmp_path / "a.pth"), complete)


def test_no_file(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match=r"absent.pth does not exist"):
        weights.load_state_dict(tmp_path / "absent.pth")


class _Malice:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path, complete, zipped):
    trace, path = tmp_path / "executed", tmp_path / "evil.pth"
    content = {"model": complete, "extra": _Malice(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)

    with pytest.raises(CheckpointUnreadableError, match="refused: they may run code"):
        weights.load_state_dict(path)
    assert not trace.exists()


def test_a_bare_pickle_is_refused_and_not_run(tmp_path):
    trace, path = tmp_path / "executed", tmp_path / "evil.bin"
    path.write_bytes(pickle.dumps(_Malice(trace)))

    with pytest.raises(CheckpointUnreadableError):
        weights.load_state_dict(path)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_a_file_cut_short_is_refused(tmp_path, complete, suffix, kept):
    path = tmp_path / f"a{suffix}"
    if suffix == ".safetensors":
        save_file(complete, path)
    else:
        torch.save(complete, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])

    with pytest.raises(CheckpointUnreadableError, match=str(path)):
        weights.load_state_dict(path)


@pytest.mark.parametrize(
    "garbage", [b"<!DOCTYPE html>", b"version https://git-lfs", b"\x80\x04]", b"\0" * 99]
)
def test_a_file_of_something_else_is_refused(tmp_path, garbage):
    for file in ("a.pth", "a.safetensors"):
        (tmp_path / file).write_bytes(garbage)
        with pytest.raises(CheckpointUnreadableError):
            weights.load_state_dict(tmp_path / file)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ({}, "no table of weights"),
        ([1, 2], "no table of weights"),
        ({"epoch": 3, "w": torch.ones(1), "note": "x"}, r"2 of its entries are no tensors \(epoch, note\)"),
        ({"w": torch.tensor([1.0, float("nan")])}, "w holds values that are not finite"),
        ({"w": torch.tensor([1.0, float("inf")]).half()}, "w holds values that are not finite"),
    ],
)
def test_content_that_is_no_weights_is_refused(tmp_path, content, cause):
    torch.save(content, tmp_path / "a.pth")

    with pytest.raises(CheckpointUnreadableError, match=cause):
        weights.load_state_dict(tmp_path / "a.pth")


def test_every_weight_is_put_in_and_the_classifier_left_aside(complete, headless, caplog):
    caplog.set_level("INFO")

    dropped = weights.fit(headless, complete, "a.pth", NAME)

    assert dropped == ["fc.weight", "fc.bias"]
    assert caplog.messages == ["a.pth: left aside the classifier (fc.weight, fc.bias)"]
    bare = {name: tensor for name, tensor in complete.items() if name not in dropped}
    assert _same(headless.state_dict(), bare)


def test_half_precision_is_taken(complete, headless):
    halved = {name: t.half() if t.is_floating_point() else t for name, t in complete.items()}

    weights.fit(headless, halved, "a.pth", NAME)

    assert torch.equal(headless.state_dict()["conv1.0.weight"], halved["conv1.0.weight"].float())


def test_only_the_count_of_steps_may_be_missing(complete, headless):
    bare = {name: tensor for name, tensor in complete.items() if "num_batches" not in name}
    assert len(bare) < len(complete)

    weights.fit(headless, bare, "a.pth", NAME)

    assert torch.equal(headless.state_dict()["conv1.1.running_var"], bare["conv1.1.running_var"])


def test_what_does_not_fit_is_counted_and_named_and_nothing_is_changed(complete, headless):
    state = dict(complete)
    for name in ("conv1.1.weight", "conv1.1.bias", "conv1.1.running_mean", "layer1.0.conv1.weight"):
        del state[name]
    state["stem.weight"] = torch.ones(3)
    state["conv1.0.weight"] = torch.ones(1, 2, 3)
    state["conv1.1.running_var"] = torch.ones_like(state["conv1.1.running_var"], dtype=torch.int8)
    before = {name: tensor.clone() for name, tensor in headless.state_dict().items()}

    with pytest.raises(CheckpointMismatchError) as caught:
        weights.fit(headless, state, "a.pth", NAME)

    shape = "x".join(map(str, complete["conv1.0.weight"].shape))
    width = complete["conv1.1.running_var"].shape[0]
    assert caught.value.what == (
        f"checkpoint a.pth does not fit {NAME}: "
        "4 missing (conv1.1.weight, conv1.1.bias, conv1.1.running_mean, …); "
        "1 unexpected (stem.weight); "
        f"2 of the wrong shape (conv1.0.weight 1x2x3 instead of {shape}, "
        f"conv1.1.running_var {width} int8 instead of {width})"
    )
    assert caught.value.missing == (
        "conv1.1.weight",
        "conv1.1.bias",
        "conv1.1.running_mean",
        "layer1.0.conv1.weight",
    )
    assert _same(headless.state_dict(), before)


def test_another_networks_classifier_is_not_left_aside(complete, headless):
    with pytest.raises(CheckpointMismatchError, match=r"0 missing; 1 unexpected \(head.fc.weight\)"):
        weights.fit(headless, {**complete, "head.fc.weight": torch.ones(2, 2)}, "a.pth", NAME)


def test_hash_of_weights_depends_on_names_and_values_not_on_their_order(complete):
    digest = weights.state_sha256(complete)

    assert digest == weights.state_sha256(dict(reversed(complete.items())))
    assert digest != weights.state_sha256({f"x{name}": tensor for name, tensor in complete.items()})
    assert digest != weights.state_sha256({**complete, "conv1.1.bias": complete["conv1.1.bias"] + 1e-6})


def test_the_shared_checkpoint_fits_with_nothing_left_over():
    path = SHARED / "weights" / "mobilenetv2_100.pth"
    if not path.is_file():
        pytest.skip("no weights/mobilenetv2_100.pth in STINFER_DATA")
    model = timm.create_model("mobilenetv2_100.ra_in1k", pretrained=False, num_classes=0)
    state = weights.load_state_dict(path)

    assert weights.fit(model, state, str(path), "mobilenetv2_100.ra_in1k") == []
    assert _same(model.state_dict(), {name: state[name] for name in model.state_dict()})
    assert set(state) == set(model.state_dict())
