"""Models that reach beyond themselves are refused; onnx, which the runtime has not, makes them here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stinfer.bank import Bank
from stinfer.encoder import Encoder
from stinfer.errors import ModelFormatError
from stinfer.onnx_guard import find_forbidden
from stinfer.onnx_runtime import ort
from stinfer_export.stain_texture import build_graph

MODEL = Bank.open(Path(__file__).parents[1] / "data" / "board_v1.h5").models()[0]


def test_our_own_models_pass() -> None:
    assert find_forbidden(MODEL) is None
    assert find_forbidden(build_graph().SerializeToString()) is None


def external(tensor: TensorProto) -> TensorProto:
    """Move a tensor's values to the file `weights.bin` of the working folder."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def with_addition(tensor: TensorProto, *, constant: bool) -> bytes:
    """Add a tensor to the board model's embedding, from an initializer or a Constant node."""
    model = onnx.load_from_string(MODEL)
    model.graph.node[-1].output[0] = "mean"
    if constant:
        model.graph.node.append(helper.make_node("Constant", [], ["shift"], value=tensor))
    else:
        tensor.name = "shift"
        model.graph.initializer.append(tensor)
    model.graph.node.append(helper.make_node("Add", ["mean", "shift"], ["embedding"]))
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("constant", [False, True])
def test_weights_in_another_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, constant: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights.bin").write_bytes(np.ones(3, dtype=np.float32).tobytes())
    inside = numpy_helper.from_array(np.ones(3, dtype=np.float32))
    black = np.zeros((1, 2, 2, 3), dtype=np.uint8)
    honest = Encoder(with_addition(inside, constant=constant), "m.onnx", device="cpu")
    np.testing.assert_array_equal(honest.embed(black), [[1, 1, 1]])
    with pytest.raises(ModelFormatError, match="weights in another file"):
        Encoder(with_addition(external(inside), constant=constant), "m.onnx", device="cpu")


def test_operators_of_another_domain_are_refused() -> None:
    model = onnx.load_from_string(MODEL)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(ModelFormatError, match=r"com\.microsoft"):
        Encoder(model.SerializeToString(), "m.onnx", device="cpu")


def test_a_branch_hides_nothing() -> None:
    """Initializers of a subgraph, in the branch of an If, are looked at too."""
    tensor = external(numpy_helper.from_array(np.ones(3, dtype=np.float32), "hidden"))
    branch = helper.make_graph(
        [helper.make_node("Identity", ["hidden"], ["out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [3])],
        [tensor],
    )
    model = onnx.load_from_string(MODEL)
    model.graph.node.append(helper.make_node("If", ["yes"], ["x"], then_branch=branch, else_branch=branch))
    assert find_forbidden(model.SerializeToString()) == "it keeps weights in another file"


def test_a_function_is_refused_also_one_that_bears_the_name_of_an_operator() -> None:
    """ONNX's checker, and ONNX Runtime, take a model whose `ReduceMean` is another."""
    model = onnx.load_from_string(MODEL)
    square = helper.make_node("Mul", ["x", "x"], ["y"])
    imports = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("", "ReduceMean", ["x"], ["y"], [square], imports))
    with pytest.raises(ModelFormatError, match="functions of its own"):
        Encoder(model.SerializeToString(), "m.onnx", device="cpu")


def test_an_attribute_that_is_a_sparse_tensor_hides_nothing() -> None:
    values = external(numpy_helper.from_array(np.ones(1, dtype=np.float32), "values"))
    indices = numpy_helper.from_array(np.zeros(1, dtype=np.int64), "indices")
    sparse = onnx.SparseTensorProto(values=values, indices=indices, dims=[3])
    model = onnx.load_from_string(MODEL)
    model.graph.node.append(onnx.NodeProto(op_type="Constant", output=["shift"]))
    model.graph.node[-1].attribute.append(
        onnx.AttributeProto(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse)
    )
    assert find_forbidden(model.SerializeToString()) == "it keeps weights in another file"


def test_an_initializer_that_is_sparse_hides_nothing() -> None:
    model = onnx.load_from_string(MODEL)
    sparse = model.graph.sparse_initializer.add()
    external(sparse.values)
    assert find_forbidden(model.SerializeToString()) == "it keeps weights in another file"


def test_a_key_that_protobuf_would_cut_to_another_field_is_refused() -> None:
    """Of `graph`, field 7, with bit 32 set: protobuf drops the bit, and we must not look past it."""
    model = onnx.load_from_string(MODEL)
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    key = (7 << 3 | 2) | 1 << 32
    wide = bytes([key & 0x7F | 0x80, *(key >> shift & 0x7F | 0x80 for shift in (7, 14, 21)), key >> 28])
    length = len(graph)
    size = bytes([length & 0x7F | 0x80, length >> 7])
    with pytest.raises(ModelFormatError, match="no ONNX file: it has a field of number"):
        Encoder(model.SerializeToString() + wide + size + graph, "m.onnx", device="cpu")


@pytest.mark.parametrize("model", [b"", b"\x00", b"\xff" * 12, b"\x3a\x7f", b"\x3b\x3c", b"not a model"])
def test_what_is_no_model_is_refused(model: bytes) -> None:
    with pytest.raises(ModelFormatError, match=r"m\.onnx"):
        Encoder(model, "m.onnx", device="cpu")


def test_onnx_runtimes_own_format_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in that format is no protobuf, and would be loaded unseen by the guard."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
    own = (tmp_path / "m.ort").read_bytes()
    assert own[4:8] == b"ORTM"
    # As if the bytes were made so that the guard finds nothing.
    monkeypatch.setattr("stinfer.encoder.find_forbidden", lambda _: None)
    with pytest.raises(ModelFormatError):
        Encoder(own, "m.ort", device="cpu")
