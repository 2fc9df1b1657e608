from __future__ import annotations

import hashlib

import numpy as np

from stinfer.integrity import hash_arrays, hash_json


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_hash_of_an_array_by_hand():
    # 1.0 and -2.0 as little-endian IEEE 754.
    array = np.array([[1.0, -2.0]], dtype=np.float32)
    assert hash_arrays(array) == sha(b"<f4(1, 2)" + bytes.fromhex("0000803f000000c0"))


def test_hash_of_several_arrays_by_hand():
    first, second = np.array([1, 258], dtype=np.int32), np.array([7], dtype=np.uint8)
    assert hash_arrays(first, second) == sha(b"<i4(2,)" + bytes([1, 0, 0, 0, 2, 1, 0, 0]) + b"|u1(1,)\x07")


def test_hash_of_nothing():
    assert hash_arrays(np.zeros((0, 3), dtype=np.float64)) == sha(b"<f8(0, 3)")
    assert hash_arrays() == sha(b"")


def test_byte_order_and_memory_layout_do_not_matter():
    array = np.arange(12, dtype="<f4").reshape(3, 4)
    assert hash_arrays(array.astype(">f4")) == hash_arrays(array)
    assert hash_arrays(np.asfortranarray(array)) == hash_arrays(array)
    assert hash_arrays(np.repeat(array, 2, axis=0)[::2]) == hash_arrays(array)


def test_value_type_shape_and_order_matter():
    array = np.arange(6, dtype=np.int32)
    changed = array.copy()
    changed[5] += 1
    hashes = [
        hash_arrays(array),
        hash_arrays(changed),
        hash_arrays(array.astype(np.int64)),
        hash_arrays(array.view(np.uint32)),
        hash_arrays(array.reshape(2, 3)),
        hash_arrays(array[::-1]),
        hash_arrays(array[:3], array[3:]),
        hash_arrays(array[3:], array[:3]),
    ]
    assert len(set(hashes)) == len(hashes)


def test_hash_of_json_by_hand():
    value = {"µ": "Größe", "a": [1, 0.5, "x"]}
    assert hash_json(value) == sha('{"a":[1,0.5,"x"],"µ":"Größe"}'.encode())
    assert hash_json(dict(reversed(value.items()))) == hash_json(value)
    assert hash_json([1, "1"]) == sha(b'[1,"1"]')
