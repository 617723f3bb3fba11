"""--mode=export: writes a checkpoint of a workdir, by default the newest, for other frameworks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from deit_jax import console
from deit_jax.config import ConfigError
from deit_jax.config_record import recorded_config
from deit_jax.inference.classifier import Classifier
from deit_jax.inference.onnx_file import DEFAULT_OPSET, check_onnx, export_onnx
from deit_jax.inference.portable import export_jax
from deit_jax.models.protocol import fusion_of, is_distilled
from deit_jax.modes.exported_folder import CARD, check_folder, digest_of_weights, set_card_aside
from deit_jax.modes.model_card import model_card, own_flags
from deit_jax.network import load_network
from deit_jax.storage.files import write_file
from deit_jax.storage.workdir import Workdir, WorkdirLike
from deit_jax.training.record import read_config
from deit_jax.weights import save_weights
from deit_jax.weights.cards import CARD_NAMES
from deit_jax.weights.files import WRITTEN
from deit_jax.weights.hub_files import import_hub, is_name, push_files

PROGRAMS = ("jax", "jax_float", "onnx")
PUSHED = ("timm", "hf", "flax")


@dataclasses.dataclass(frozen=True)
class Push:
    """Where on the Hugging Face hub an export is uploaded.

    repository: OWNER/NAME. private: if it is created. revision: a branch; None: the main one. licence: of the weights, by the
    hub's identifier; "": none is stated.
    """

    repository: str
    private: bool = False
    revision: str | None = None
    licence: str = ""


def export(
    workdir: WorkdirLike,
    output: Path,
    *,
    layout: str,
    which: str,
    checkpoint: str = "newest",
    opset: int | None = None,
    push: Push | None = None,
) -> Path:
    """Writes the "raw" or "ema" weights of a training run to `output` and returns the path of the weights file.

    Model, image size, preprocessing and class names are those of the run.

    layout: "jax" or "onnx": a program that contains its weights (see inference/); else the framework whose tensor names are used
    (see `save_weights`). checkpoint: "newest", "best" or a step number. opset: for "onnx", as in `export_onnx`.
    push: also write a model card, README.md, and upload the folder. Files of an earlier export are replaced or, if they are no
    longer right, removed; its model card is renamed.

    Raises ConfigError, CheckpointError or WeightsError, each with a one-line message.
    """
    if opset is not None and layout != "onnx":
        raise ConfigError(f"--opset={opset} applies to --layout=onnx, not to {layout}")
    if push is not None:
        _check_push(push, output, layout)
    check_folder(output, program=layout in PROGRAMS, push=push is not None)
    network = load_network(workdir, kind="workdir", which=which, checkpoint=checkpoint)
    if layout in PROGRAMS:
        # A teacher's names stay as recorded, because they are matched with the student's.
        names = network.class_names if layout == "jax_float" else None
        return _export_program(Classifier.from_network(network, class_names=names), output, layout, opset)
    model, names = network.model, network.class_names
    # The model may have more classes than its data set, which then cannot name all of them.
    names = names if names and len(names) == model.num_classes else None
    before = digest_of_weights(output)
    path = save_weights(
        network.variables, model, output, layout, preprocessing=network.preprocessing, class_names=names
    )
    if is_distilled(model) and fusion_of(model) != "logits":
        fusion, advice = "averages the softmax outputs of its heads", "combine the two heads yourself"
        if fusion_of(model) == "class":
            fusion, advice = "uses only its class head", "use only that head, because the other one is not trained"
        console.warn(f"the model {fusion}, but models loaded from the {layout} layout average the logits: {advice}")
    console.say(f"{which} weights of {network.name} after step {network.step:,}, {layout} layout: {path}")
    if push is None and path.parent == output and before != digest_of_weights(output):
        set_card_aside(output, None)
    if push is not None:
        card = model_card(Workdir.at(workdir), network, layout=layout, repository=push.repository, licence=push.licence)
        set_card_aside(output, card)
        write_file(output / CARD, card, ConfigError)
        files = [name for name in (CARD, path.name, *CARD_NAMES) if (output / name).is_file()]
        console.say(f"uploading {', '.join(files)} to {push.repository}")
        message = f"{network.name} after step {network.step:,}, {which} weights, {layout} layout"
        commit = push_files(
            output,
            files,
            push.repository,
            removed=[name for name in CARD_NAMES if name not in files],
            private=push.private,
            revision=push.revision,
            message=message,
        )
        flags = own_flags(push.repository, network, recorded_config(read_config(Workdir.at(workdir))))
        console.say(f"uploaded: {commit}; to use it: {flags}")
    return path


def _check_push(push: Push, output: Path, layout: str) -> None:
    if not is_name(push.repository):
        raise ConfigError(f"--push={push.repository}: give OWNER/NAME, a repository of the Hugging Face hub")
    if layout not in PUSHED:
        raise ConfigError(
            f"--push is for --layout={' or '.join(PUSHED)}, whose folder other people can load, not for {layout}"
        )
    if output.suffix.lower() in WRITTEN:
        raise ConfigError(f"--output={output} is a file: --push uploads a folder with a model card, so give a folder")
    import_hub()


def _export_program(classifier: Classifier, output: Path, layout: str, opset: int | None) -> Path:
    if layout in ("jax", "jax_float"):
        path = export_jax(classifier, output, normalised=layout == "jax_float")
    else:
        path = export_onnx(classifier, output, opset=DEFAULT_OPSET if opset is None else opset)
    console.say(f"{classifier.description}, {layout} program: {path}")
    if layout == "onnx":
        try:
            difference = check_onnx(path, classifier)
        except ImportError:
            console.say("not checked in onnxruntime, which is not installed (pip install onnxruntime)")
        else:
            console.say(f"checked in onnxruntime: maximum relative difference of the logits {difference:.1e}")
    return path
