import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from deit_jax import Classifier, create_model, save_weights
from deit_jax.data.decoding import CenterCrop
from deit_jax.data.sources import DataError
from deit_jax.inference.classifier import PredictionError
from deit_jax.weights import hub
from deit_jax.weights.class_names import imagenet_class_names, readable
from tests.inference.conftest import CHINA, FLOWER

MEAN, STD = np.array((0.485, 0.456, 0.406), np.float32), np.array((0.229, 0.224, 0.225), np.float32)


@pytest.fixture(scope="module")
def expected(vit):
    """The output of the model for the two photographs, its images made ready step by step."""
    crops = [CenterCrop(28, 0.875)(np.asarray(Image.open(path))) for path in (CHINA, FLOWER)]
    return jax.jit(vit.model.apply)(vit.variables, (np.stack(crops) / np.float32(255) - MEAN) / STD)


def test_files_and_bytes_are_accepted(vit, expected, tmp_path):
    encoded = FLOWER.read_bytes()
    wanted = vit(FLOWER)
    with FLOWER.open("rb") as file, FLOWER.open("rb") as given:
        given.read(100)  # as after a library has inspected the format
        for image in (
            file,
            file,
            given,
            io.BytesIO(encoded),
            encoded,
            bytearray(encoded),
            memoryview(encoded),
            Stream(encoded),
        ):
            assert vit(image) == wanted
    assert vit([CHINA, io.BytesIO(encoded), encoded])[1:] == [wanted, wanted]
    with pytest.raises(DataError, match=r"^image 0: the open file cannot be read \(.*closed file"):
        vit(file)
    odd = tmp_path / "http:"  # a file name, not an address
    odd.write_bytes(encoded)
    assert vit(odd) == wanted


class Stream:
    """A file of a web server, which does not support seeking."""

    def __init__(self, content):
        self.read = io.BytesIO(content).read


def test_predictions_equal_the_model(vit, expected):
    opened, array = Image.open(CHINA), np.asarray(Image.open(FLOWER))
    mixed = vit.probabilities([str(CHINA), array, opened, FLOWER])
    wanted = np.asarray(jax.nn.softmax(expected.logits))
    np.testing.assert_allclose(mixed, wanted[[0, 1, 0, 1]], atol=1e-6)
    assert vit.label(9) == "Ankle boot"  # the run's own names
    best = vit(opened)
    assert [one.index for one in best] == np.argsort(-wanted[0])[:5].tolist()
    assert best[0].label == vit.label(best[0].index)
    assert best[0].probability == pytest.approx(wanted[0].max(), abs=1e-6)


def test_one_image_gives_a_list(vit):
    array = np.asarray(Image.open(FLOWER))
    one = vit(array, top_k=2)
    assert len(one) == 2 and one == vit([array], top_k=2)[0] == vit(np.stack([array, array]), top_k=2)[1]
    assert vit([]) == [] and vit.probabilities([]).shape == (0, 10)
    assert len(vit(CHINA, top_k=99)) == 10  # there are no more


def test_head_selects_a_head(vit, expected):
    pair = [jax.nn.softmax(logits) for logits in (expected.class_logits, expected.distillation_logits)]
    wanted = {"class": pair[0], "distillation": pair[1], "fused_softmax": (pair[0] + pair[1]) / 2}
    for head, probabilities in wanted.items():
        np.testing.assert_allclose(vit.probabilities([CHINA, FLOWER], head=head), probabilities, atol=1e-6)
    assert np.abs(pair[0] - pair[1]).max() > 1e-3
    with pytest.raises(
        PredictionError, match=r"^head='teacher' is none of class, distillation, fused_logits, fused_softmax"
    ):
        vit(CHINA, head="teacher")


def test_class_fusion_uses_the_class_head(vit):
    alone = Classifier(vit.model.clone(fusion="class"), vit.variables, crop=vit.crop, batch_size=1)
    np.testing.assert_array_equal(alone.probabilities(CHINA), alone.probabilities(CHINA, head="class"))


def test_last_batch_is_padded_to_the_next_size(regnet_workdir):
    classifier = Classifier.from_workdir(regnet_workdir, batch_size=6)
    assert classifier.batch_sizes == (1, 2, 4, 6)
    ran, program = [], classifier._predict
    classifier._predict = lambda variables, images: ran.append(len(images)) or program(variables, images)
    images = np.random.default_rng(0).integers(0, 256, (9, 40, 30, 3), dtype=np.uint8)
    found = {count: classifier.probabilities(images[:count]) for count in (1, 9, 3, 8, 2, 1, 9, 7, 5)}
    assert ran == [1, 6, 4, 4, 6, 2, 2, 1, 6, 4, 6, 1, 6]
    assert program._cache_size() == 4  # one program a size, each compiled once
    for count, probabilities in found.items():
        np.testing.assert_allclose(probabilities, found[9][:count], atol=1e-6)
    assert np.ptp(found[9], axis=0).max() > 1e-4  # the images differ
    assert Classifier.from_workdir(regnet_workdir).batch_sizes == (1, 2, 4, 8)
    assert Classifier.from_workdir(regnet_workdir, batch_size=1).batch_sizes == (1,)


def test_regnet_has_one_head(regnet):
    assert regnet.heads == ("class",)
    assert regnet.probabilities(iter([CHINA, FLOWER])).sum(axis=-1) == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("gone.jpg", r"^gone\.jpg: there is no such file$"),
        ("tests", "^tests is a folder: give the images in it$"),
        ("Makefile", r"^Makefile: an image of .* \(not an image format that Pillow knows\)"),
        (np.zeros((8, 8, 3), np.float32), r"^image 0: an image array is float32\[8, 8, 3\]; give uint8"),
        (np.zeros((8, 8, 4), np.uint8), r"^image 0: an image array is uint8\[8, 8, 4\]; give uint8"),
        (np.zeros((0, 8, 3), np.uint8), "^image 0 has no pixels"),
        (
            7,
            "^image 0 is of type int: give a path, an open file, bytes of an encoded image, a PIL image or a uint8 array",
        ),
        (b"not an image", "^image 0: an image of 12 bytes cannot be decoded"),
        ([FLOWER, io.BytesIO()], "^image 1: an image of 0 bytes cannot be decoded .an empty file"),
        (io.StringIO("text"), "^image 0: read.. returns str, not bytes: open the file in binary mode"),
        ([CHINA, None], "^image 1 is of type NoneType"),
    ],
)
def test_invalid_images_raise_one_line(vit, image, message):
    with pytest.raises(DataError, match=message) as caught:
        vit(image)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("https://example.org/rose.jpg", "download the image, and give its bytes"),
        ("S3://bucket/rose.jpg", "download the image"),
        (Path("gs://bucket/rose.jpg"), "download the image"),
        ("file:///tmp/no-such-rose.jpg", "give only the path$"),
        ("data:image/png;base64," + 10_000 * "iVBO", r"decode the part after the comma .base64\.b64decode."),
    ],
)
def test_addresses_are_rejected(vit, address, advice):
    with pytest.raises(DataError, match=f"is a URL, not a file: {advice}") as caught:
        vit([FLOWER, address])
    assert len(str(caught.value)) < 300


def test_exported_file_equals_its_run(vit, tmp_path):
    path = save_weights(vit.variables, vit.model, tmp_path / "weights.safetensors")
    names = [f"class {i}" for i in range(10)]
    fields = dict(patch_size=14, embed_dim=16, depth=2, num_heads=2, fusion="softmax")
    found = Classifier.from_weights(path, "deit_tiny_distilled_patch16_224", class_names=names, image_size=28, **fields)
    np.testing.assert_allclose(found.probabilities(CHINA), vit.probabilities(CHINA), atol=1e-6)
    assert found(CHINA)[0].label == f"class {vit(CHINA)[0].index}"
    with pytest.raises(PredictionError, match="11 class names for a model of 10"):
        Classifier(vit.model, vit.variables, crop=vit.crop, class_names=range(11))


def test_pretrained_model_has_imagenet_names(monkeypatch, tmp_path):
    name, fields = "deit_tiny_patch16_224", dict(depth=1, embed_dim=24)
    model = create_model(name, image_size=32, **fields)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    path = save_weights(variables, model, tmp_path / "model.safetensors")
    monkeypatch.setattr(hub, "fetch_pretrained", lambda *_, **__: path)  # tests/weights/test_hub.py fetches
    classifier = Classifier.from_pretrained(name, image_size=32, **fields)
    [best] = classifier(CHINA, top_k=1)
    assert best.label == imagenet_class_names()[best.index]
    assert (classifier.crop.size, classifier.crop.crop_ratio) == (32, 0.875)


def test_wordnet_ids_become_names():
    assert readable(["n02123045", "n01440764"]) == ("tabby, tabby cat", "tench, Tinca tinca")
    assert readable(["n02123045", "my cat"]) == ("n02123045", "my cat")
    assert imagenet_class_names()[281] == "tabby, tabby cat" and len(set(imagenet_class_names())) == 1000


def test_repr(vit):
    assert repr(vit) == f"Classifier({vit.description}, 10 classes)"
