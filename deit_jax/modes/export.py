"""--mode=export: a checkpoint of a workdir, the newest if no other is asked for, as files that others open."""

from __future__ import annotations

from pathlib import Path

from deit_jax import console
from deit_jax.config import ConfigError
from deit_jax.inference.classifier import Classifier
from deit_jax.inference.onnx_file import DEFAULT_OPSET, check_onnx, export_onnx
from deit_jax.inference.portable import export_jax
from deit_jax.models.protocol import fusion_of, is_distilled
from deit_jax.network import load_network
from deit_jax.storage.workdir import Workdir
from deit_jax.weights import save_weights

PROGRAMS = ("jax", "onnx")


def export(
    workdir: Path, output: Path, *, layout: str, which: str, checkpoint: str = "newest", opset: int | None = None
) -> Path:
    """Write the "raw" or "ema" weights of a training run to `output` (see `save_weights`); returns the path of the weights file.

    checkpoint: "newest", "best" or a step's number. Model, image size, preprocessing and class names are those of the run. Raises
    ConfigError, CheckpointError or WeightsError, each with one clear line. layout: "jax" and "onnx" are programs that hold their
    weights and need no such model elsewhere (see inference/), the others tensors by another framework's names. opset: of "onnx",
    as of `export_onnx`; refused with the others.
    """
    if opset is not None and layout != "onnx":
        raise ConfigError(f"--opset={opset} is of --layout=onnx, not of {layout}")
    if layout in PROGRAMS:
        return _export_program(workdir, output, layout=layout, which=which, checkpoint=checkpoint, opset=opset)
    network = load_network(workdir, kind="workdir", which=which, checkpoint=checkpoint)
    model, names = network.model, network.class_names
    # The model may have more classes than its data set, which then cannot name them all.
    names = names if names and len(names) == model.num_classes else None
    path = save_weights(
        network.variables, model, output, layout, preprocessing=network.preprocessing, class_names=names
    )
    if is_distilled(model) and fusion_of(model) != "logits":
        own, read = "fuses its heads by softmax", "read the two heads there"
        if fusion_of(model) == "class":
            own, read = "answers by its class head alone", "read its class head there, the other one is not trained"
        console.warn(f"the model {own}, the layout's framework will fuse the heads by logits: {read}")
    console.say(f"{which} weights of {network.name} after step {network.step:,}, {layout} layout: {path}")
    return path


def _export_program(
    workdir: Path, output: Path, *, layout: str, which: str, checkpoint: str, opset: int | None
) -> Path:
    if Workdir.at(output).checkpoints.exist():
        raise ConfigError(f"{output} is the --workdir of a training run: give another folder")
    network = load_network(workdir, kind="workdir", which=which, checkpoint=checkpoint)
    classifier = Classifier.from_network(network)
    if layout == "jax":
        path = export_jax(classifier, output)
    else:
        path = export_onnx(classifier, output, opset=DEFAULT_OPSET if opset is None else opset)
    console.say(f"{classifier.description}, {layout} program: {path}")
    if layout == "onnx":
        try:
            difference = check_onnx(path, classifier)
        except ImportError:
            console.say("not checked in onnxruntime, which is not installed (pip install onnxruntime)")
        else:
            console.say(
                f"checked in onnxruntime: its logits differ from this model's by at most {difference:.1e}, relative"
            )
    return path
