"""Programs as teachers: what of a file is read, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from deit_jax.models.protocol import classify, on_mesh
from deit_jax.parallel.mesh import make_mesh
from deit_jax.weights.errors import WeightsError
from deit_jax.weights.files import kind_of
from deit_jax.weights.program_file import read_program

KERNEL = np.random.default_rng(0).normal(size=(8, 8, 3, 5)).astype(np.float32)


def logits(images):
    return jnp.einsum("bhwc,hwck->bk", images, KERNEL)


def write(folder, function=logits, *, shape="b, 8, 8, 3", dtype=jnp.float32, platforms=("cpu", "tpu"), about=None):
    images = jax.ShapeDtypeStruct(export.symbolic_shape(shape), dtype)
    program = export.export(jax.jit(function), platforms=platforms)(images)
    (folder / "model.jax").write_bytes(program.serialize())
    about = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.4]} if about is None else about
    (folder / "preprocessing.json").write_text(json.dumps(about))
    return folder


def test_a_program_and_its_preprocessing_are_read(tmp_path):
    names = list("abcde")
    write(
        tmp_path,
        lambda x: {"logits": logits(x), "other": x},
        about={"mean": [0, 0, 0], "std": [1, 1, 1], "class_names": names},
    )
    for path in (tmp_path, tmp_path / "model.jax"):
        assert kind_of(str(path)) == "program"
        read = read_program(path, "tpu")
        assert (read.model.num_classes, read.model.image_size) == (5, 8)
        assert (read.mean, read.std, read.class_names) == ((0, 0, 0), (1, 1, 1), tuple(names))
    images = np.random.default_rng(1).normal(size=(3, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(classify(read.model, {}, images).logits, logits(images), rtol=1e-5)


def test_each_device_runs_a_program_on_its_rows(tmp_path):
    model = read_program(write(tmp_path), "cpu").model
    mesh = make_mesh(devices=jax.devices()[:2])
    images = np.random.default_rng(1).normal(size=(6, 8, 8, 3)).astype(np.float32)
    compiled = jax.jit(lambda images: classify(on_mesh(model, mesh), {}, images).logits).lower(images).compile()
    np.testing.assert_allclose(compiled(images), logits(images), rtol=1e-5)
    assert "f32[3,8,8,3]" in compiled.as_text()  # half of the rows


def test_models_of_equal_files_are_equal(tmp_path):
    one, again = (read_program(write(tmp_path), "cpu").model for _ in range(2))
    other = read_program(write(tmp_path, lambda x: 2 * logits(x)), "cpu").model
    assert one == again and hash(one) == hash(again)
    assert one != other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(dtype=jnp.uint8, function=lambda x: logits(x / 255)), "takes uint8.b, 8, 8, 3., but .* --layout=jax_float"),
        (dict(dtype=jnp.bfloat16), "takes bfloat16.b, 8, 8, 3.; a teacher takes one array of normalised images"),
        (dict(shape="b, 8, 8, 4", function=lambda x: logits(x[..., :3])), "takes float32.b, 8, 8, 4.; a teacher takes"),
        (dict(shape="b, 3, 8, 8", function=lambda x: logits(jnp.moveaxis(x, 1, 3))), "takes float32.b, 3, 8, 8.; a teacher"),
        (dict(shape="4, 8, 8, 3"), "takes batches of 4 images only: export it with a symbolic batch"),
        (dict(platforms=("cuda", "tpu")), "runs on cuda, tpu, not on cpu: export it with"),
        (dict(function=lambda x: jnp.argmax(logits(x), -1)), "returns int32.b.: a teacher returns logits"),
        (dict(function=lambda x: (logits(x), logits(x))), "returns a tuple: a teacher returns logits"),
        (dict(function=lambda x: logits(x).astype(jnp.int32)), "returns int32: a teacher returns floating-point logits"),
        (dict(function=lambda x: {"scores": logits(x)}), "returns a dict: a teacher returns logits"),
        (dict(about={"mean": [0, 0, 0]}), "std=None must be three numbers"),
        (dict(about={"mean": [0, 0, 0], "std": [1, 0, 1]}), "must be above 0"),
        (dict(about={"mean": [0, 0], "std": [1, 1, 1]}), "mean=.0, 0. must be three numbers"),
        (dict(about=[1]), "give an object with mean and std"),
        (dict(about={"mean": [0, 0, 0], "std": [1, 1, 1], "class_names": list("abcdef")}), "names 6 classes, the program has 5"),
        (dict(about={"normalised_by_the_program": True}), "takes normalised images, this one normalises them itself"),
    ],
)  # fmt: skip
def test_what_is_no_teacher_is_refused_in_one_line(tmp_path, change, message):
    write(tmp_path, **change)
    with pytest.raises(WeightsError, match=message) as refused:
        read_program(tmp_path, "cpu")
    assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)


def test_damaged_and_missing_files_are_refused_in_one_line(tmp_path):
    file = write(tmp_path) / "model.jax"
    whole = file.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"<html>" * 100):
        file.write_bytes(content)
        with pytest.raises(
            WeightsError, match=r"is damaged, is not a jax.export program, or was made by another version"
        ):
            read_program(file, "cpu")
    file.write_bytes(whole)
    (tmp_path / "preprocessing.json").write_text("{")
    with pytest.raises(WeightsError, match=r"preprocessing.json is not JSON"):
        read_program(file, "cpu")
    (tmp_path / "preprocessing.json").unlink()
    with pytest.raises(WeightsError, match=r"preprocessing.json: there is no such file"):
        read_program(file, "cpu")
    with pytest.raises(WeightsError, match="there is no such file"):
        read_program(tmp_path / "other.jax", "cpu")
