"""What a model says of its map, whether it is true, and what becomes of a model that says nonsense."""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from stinfer.bank import Bank
from stinfer.contract import MapTraits, ModelCard, Pooling, moment_outputs
from stinfer.encoder import Encoder
from stinfer.encoder_stack import map_traits
from stinfer.errors import ModelFormatError

DATA = Path(__file__).parents[1] / "data"
CELLS = Bank.open(DATA / "board_map.h5").models()[0]
HEADED = (DATA / "max_color.onnx").read_bytes()
# Cells of 4 x 4 px; their moments are the mean squares of the mean colours of 2 x 2 px.
SQUARES = (DATA / "square_cells.onnx").read_bytes()
PATCHES = Bank.open(DATA / "board.h5").models()[0]
CARD = ModelCard("mean_cells", 8, 3, 3, 4, "", "fp32", (), MapTraits(2, (0.5, -7.25), b"\x00head\xff"), "")

_PROPS_FIELD = 14  # of an ONNX model, in protobuf's wire format


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + varint(value // 128)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def text(field: int, value: bytes) -> bytes:
    return bytes([field << 3 | 2]) + varint(len(value)) + value


def with_props(model: bytes, **changed: str | None) -> bytes:
    """Change what a model's metadata say, or leave it out, without the package onnx."""
    kept, props, at = b"", {}, 0
    while at < len(model):
        key, value_at = read_varint(model, at)
        length, value_at = read_varint(model, value_at)
        end = value_at + length if key & 7 == 2 else value_at
        if key >> 3 == _PROPS_FIELD:
            n_key, key_at = read_varint(model, value_at + 1)
            name = model[key_at : key_at + n_key].decode()
            n_value, said_at = read_varint(model, key_at + n_key + 1)
            props[name] = model[said_at : said_at + n_value].decode()
        else:
            kept += model[at:end]
        at = end
    for name, value in changed.items():
        props[f"stinfer.{name}"] = value
    pairs = [(k.encode(), v.encode()) for k, v in props.items() if v is not None]
    return kept + b"".join(text(_PROPS_FIELD, text(1, k) + text(2, v)) for k, v in pairs)


def opened(model: bytes, pooling: Pooling = "map") -> Encoder:
    return Encoder(model, "m.onnx", pooling=pooling, device="cpu", threads=1)


# --- the card -------------------------------------------------------------------------------------


def test_a_card_of_a_map_comes_back() -> None:
    props = CARD.to_props()
    assert props["stinfer.map_halo_cells"] == "2"
    assert props["stinfer.map_offset_px"] == "0.5 -7.25"
    assert base64.b64decode(props["stinfer.map_head"]) == b"\x00head\xff"
    assert "stinfer.map_refusal" not in props
    assert ModelCard.from_props(props) == CARD


def test_a_card_that_refuses_a_map_comes_back_with_its_reason() -> None:
    card = ModelCard("vit", 224, 3, 0, 0, "", "fp32", (), None, "it has no cells")
    assert card.to_props()["stinfer.map_refusal"] == "it has no cells"
    assert "stinfer.map_halo_cells" not in card.to_props()
    assert ModelCard.from_props(card.to_props()) == card


def test_a_card_of_before_there_were_maps_has_none_and_says_why() -> None:
    card = opened(PATCHES).card
    old = {name: value for name, value in card.to_props().items() if "map" not in name}
    assert ModelCard.from_props(old).map_traits is None
    assert "export it again" in ModelCard.from_props(old).map_refusal


def test_moments_come_back_and_are_left_out_where_there_are_none() -> None:
    card = dataclasses.replace(CARD, moments=(16, 24, 40))
    props = card.to_props()
    assert props["stinfer.moments"] == "16 24 40"
    assert ModelCard.from_props(props) == card
    # What counts alike: the channels, and each stage's moments.
    assert card.layers == (3, 16, 24, 40)
    assert "stinfer.moments" not in CARD.to_props()
    assert ModelCard.from_props(CARD.to_props()).layers == (3,)
    assert moment_outputs(3) == ["moments_0", "moments_1", "moments_2"]


def test_the_fixtures_cards_are_read() -> None:
    card = opened(CELLS).card
    assert (card.channels, card.stride, card.map_refusal) == (3, 4, "")
    assert map_traits(opened(CELLS)) == MapTraits(0, (0.0, 0.0), b"")
    assert map_traits(opened(HEADED)).head
    assert opened(SQUARES).card.layers == (3, 3)


def test_the_changing_of_metadata_itself_is_not_what_is_refused() -> None:
    encoder = opened(with_props(CELLS, map_halo_cells="16", map_offset_px="-64 64"))
    assert encoder.card.map_traits == MapTraits(16, (-64.0, 64.0))
    assert opened(with_props(CELLS)).card == opened(CELLS).card


BAD = [
    {"map_halo_cells": "99"},
    {"map_halo_cells": "17"},
    {"map_halo_cells": "-1"},
    {"map_halo_cells": "1.5"},
    {"map_halo_cells": ""},
    {"map_halo_cells": "many"},
    {"map_halo_cells": "1" * 5000},
    {"map_offset_px": "nan 1"},
    {"map_offset_px": "1 nan"},
    {"map_offset_px": "inf 0"},
    {"map_offset_px": "65 0"},
    {"map_offset_px": "0 -64.001"},
    {"map_offset_px": "1"},
    {"map_offset_px": "1 2 3"},
    {"map_offset_px": "1, 2"},
    {"map_offset_px": ""},
    {"map_offset_px": None},
    {"map_head": "not base64!"},
    {"map_head": "AAA"},
    {"map_head": "µ"},
    {"map_head": base64.b64encode(b"no model").decode()},
    {"map_head": base64.b64encode(PATCHES[: len(PATCHES) // 2]).decode()},
    {"moments": "0"},
    {"moments": "3 -1"},
    {"moments": "3 0 3"},
    {"moments": "1.5"},
    {"moments": "three"},
    {"moments": "3,3"},
    {"moments": "65537"},
    {"moments": "40000 40000"},
]


@pytest.mark.parametrize("changed", BAD, ids=lambda changed: str(changed)[:40])
def test_nonsense_in_a_card_is_an_error_of_the_model(changed: dict[str, str | None]) -> None:
    with pytest.raises(ModelFormatError, match=r"m\.onnx"):
        opened(with_props(CELLS, **changed))


@pytest.mark.parametrize(
    "changed",
    [
        {"stride": "0"},
        {"stride": "-4"},
        {"channels": "0"},
        {"channels": "-3"},
        {"stride": "1000000"},
    ],
    ids=str,
)
def test_a_map_of_no_size_is_refused(changed: dict[str, str]) -> None:
    with pytest.raises(ModelFormatError):
        opened(with_props(CELLS, **changed))


# --- what it computes -----------------------------------------------------------------------------


def test_features_are_the_mean_colours_of_squares() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 20, 3), dtype=np.uint8)
    found = opened(CELLS).features(pixels)
    assert (found.shape, found.dtype) == ((2, 3, 3, 5), np.float32)
    expected = pixels.reshape(2, 3, 4, 5, 4, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_moments_follow_the_features() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (2, 12, 20, 3), dtype=np.uint8)
    encoder = opened(SQUARES)
    found = encoder.features(pixels)
    assert (found.shape, found.dtype) == ((2, 6, 3, 5), np.float32)
    halves = pixels.reshape(2, 6, 2, 10, 2, 3).mean(axis=(2, 4))
    squares = (halves**2).reshape(2, 3, 2, 5, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(found[:, :3], opened(CELLS).features(pixels), rtol=1e-5)
    np.testing.assert_allclose(found[:, 3:], squares.transpose(0, 3, 1, 2), rtol=1e-5)
    # A window's embedding is the mean of both, and a patch's still that of the features.
    assert encoder.window_dim == 6
    means = np.arange(12, dtype=np.float32).reshape(2, 6)
    assert encoder.from_means(means) is means
    embeddings = opened(SQUARES, "patch").embed(pixels)
    np.testing.assert_allclose(embeddings, pixels.mean(axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize("moments", ["4", "2", "30"])
def test_a_card_that_lies_about_its_moments_is_refused(moments: str) -> None:
    encoder = opened(with_props(SQUARES, moments=moments))
    with pytest.raises(ModelFormatError, match=rf"\(1, 3, 4, 4\), its card says \(1, {moments}, 4, 4\)"):
        encoder.features(np.zeros((1, 16, 16, 3), dtype=np.uint8))


@pytest.mark.parametrize(("model", "moments"), [(CELLS, "3"), (SQUARES, "3 3")], ids=["none", "one"])
def test_a_model_without_the_moments_of_its_card_is_refused(model: bytes, moments: str) -> None:
    encoder = opened(with_props(model, moments=moments))
    with pytest.raises(ModelFormatError, match=r"m\.onnx"):
        encoder.features(np.zeros((1, 16, 16, 3), dtype=np.uint8))


@pytest.mark.parametrize("changed", [{"stride": "8"}, {"stride": "2"}, {"channels": "4"}], ids=str)
def test_a_card_that_lies_about_the_map_is_refused(changed: dict[str, str]) -> None:
    encoder = opened(with_props(CELLS, **changed))
    with pytest.raises(ModelFormatError, match=r"its map has shape \(1, 3, 4, 4\), its card says"):
        encoder.features(np.zeros((1, 16, 16, 3), dtype=np.uint8))


def test_a_model_that_has_no_map_after_all_is_refused() -> None:
    lying = with_props(
        PATCHES, stride="4", channels="3", map_halo_cells="0", map_offset_px="0 0", map_refusal=None
    )
    with pytest.raises(ModelFormatError, match=r"m\.onnx"):
        opened(lying).features(np.zeros((1, 16, 16, 3), dtype=np.uint8))


def test_means_are_embeddings_where_there_is_no_head() -> None:
    means = np.array([[10, 20, 30], [3, 2, 1]], dtype=np.float32)
    encoder = opened(CELLS)
    assert encoder.from_means(means) is means
    assert encoder.window_dim == 3


def test_a_head_makes_embeddings_of_means() -> None:
    means = np.array([[10, 20, 30], [3, 2, 1], [-1, -5, -2]], dtype=np.float32)
    encoder = opened(HEADED)
    assert encoder.from_means(means).tolist() == [[30], [3], [-1]]
    assert (encoder.window_dim, encoder.card.dim, encoder.card.channels) == (1, 1, 3)
    assert encoder.from_means(means[:0]).shape == (0, 1)


def test_an_embedding_of_pixels_is_the_head_of_their_mean() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 16, 8, 3), dtype=np.uint8)
    encoder = opened(HEADED)
    means = encoder.features(pixels).mean(axis=(2, 3))
    np.testing.assert_allclose(encoder.from_means(means), opened(HEADED, "patch").embed(pixels), rtol=1e-5)


def test_a_head_that_gives_no_embedding_is_refused() -> None:
    encoder = opened(with_props(HEADED, dim="2"))
    with pytest.raises(ModelFormatError, match="its head gives shape"):
        encoder.from_means(np.zeros((4, 3), dtype=np.float32))


def test_a_model_in_place_of_a_head_is_refused() -> None:
    with pytest.raises(ModelFormatError, match=r"its head takes \['pixels'\], expected means"):
        opened(with_props(HEADED, map_head=base64.b64encode(PATCHES).decode()))


def test_means_that_are_no_numbers_or_of_other_channels_are_refused_by_a_head() -> None:
    encoder = opened(HEADED)
    with pytest.raises(ModelFormatError, match=r"m\.onnx"):
        encoder.from_means(np.zeros((4, 2), dtype=np.float32))
    with pytest.raises(ModelFormatError, match=r"m\.onnx"):
        encoder.from_means(np.full((4, 3), np.nan, dtype=np.float32))
