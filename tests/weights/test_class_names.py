import json

import pytest

from deit_jax.weights.class_names import imagenet_class_names, imagenet_wordnet_ids, names_of_weights, readable

NUMBERS, WORDS = imagenet_wordnet_ids(), imagenet_class_names()


def folder(path, names):
    path.mkdir()
    labels = {str(i): name for i, name in enumerate(names)}
    (path / "config.json").write_text(json.dumps({"id2label": labels}))
    return str(path)


def test_imagenet_names_match_wordnet_ids():
    assert len(NUMBERS) == len(WORDS) == 1000
    assert dict(zip(NUMBERS, WORDS, strict=True))["n02123045"].startswith("tabby")
    assert readable(NUMBERS[:2]) == WORDS[:2] and readable(("cat", NUMBERS[0])) == ("cat", NUMBERS[0])


@pytest.mark.parametrize("data", [NUMBERS, NUMBERS[5:8]])
def test_imagenet_names_become_wordnet_ids(tmp_path, data):
    assert names_of_weights(folder(tmp_path / "words", WORDS), data) == NUMBERS
    assert names_of_weights(folder(tmp_path / "numbers", NUMBERS[::-1]), data) == NUMBERS[::-1]
    assert names_of_weights("pretrained", data) == NUMBERS


def test_other_names_are_unchanged(tmp_path):
    assert names_of_weights(folder(tmp_path / "words", WORDS), ("cat", "dog")) == WORDS
    assert names_of_weights(folder(tmp_path / "own", ("cat", "dog")), NUMBERS[:2]) == ("cat", "dog")
    assert names_of_weights(folder(tmp_path / "unnamed", ("LABEL_0", "LABEL_1")), ("cat", "dog")) is None
    assert names_of_weights("pretrained", ("cat", "dog")) is None
    assert names_of_weights(str(tmp_path / "nothing.safetensors"), ("cat", "dog")) is None
