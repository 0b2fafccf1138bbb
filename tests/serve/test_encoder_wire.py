from __future__ import annotations

import numpy as np
import pytest

from tunesmith.serve.encoder_wire import EmbeddingRequest, embedding_list, read_vectors
from tunesmith.serve.wire import Refusal


def read(value: object) -> object:
    return EmbeddingRequest.model_validate({"model": "m", "input": value}).input


def test_one_input_and_several_are_read_alike() -> None:
    assert read("a") == ["a"]
    assert read(["a", " "]) == ["a", " "]
    assert read([7, 8]) == [[7, 8]]
    assert read([[7], [8, 9]]) == [[7], [8, 9]]
    assert len(read(["a"] * 2048)) == 2048  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "the input at index 0 is empty"),
        (["a", ""], "the input at index 1 is empty"),
        ([], "send a string"),
        ([[]], "send a string"),
        ([[1], []], "send a string"),
        (["a", 1], "send a string"),
        ([[1, True]], "send a string"),
        ([1.5], "send a string"),
        ({"text": "a"}, "send a string"),
        (None, "send a string"),
        (["a"] * 2049, "2,049 inputs, expected at most 2,048"),
    ],
)
def test_other_inputs_are_refused_by_name(value: object, said: str) -> None:
    with pytest.raises(Refusal, match=f"Invalid value for 'input': {said}") as caught:
        read(value)
    assert (caught.value.status, caught.value.param) == (400, "input")


def test_an_answer_carries_float32_either_way() -> None:
    vectors = np.array([[0.1, -2.0], [3.0, 0.5]], dtype=np.float32)
    plain = embedding_list(vectors, "m", tokens=5, as_base64=False)
    assert plain["data"][1] == {"object": "embedding", "index": 1, "embedding": [3.0, 0.5]}
    assert plain["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    packed = embedding_list(vectors, "m", tokens=5, as_base64=True)
    # 0.1 as a little-endian float32 is cd cc cc 3d, -2 is 00 00 00 c0.
    assert packed["data"][0]["embedding"] == "zczMPQAAAMA="
    assert read_vectors(packed) == vectors.tolist()
