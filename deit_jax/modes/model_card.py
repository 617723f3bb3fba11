"""The model card of an exported network, README.md on the Hugging Face hub, filled in from its run."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from deit_jax.answers.decisions import described_figures
from deit_jax.config import default_config, needs_teacher
from deit_jax.config_record import completed, recorded_config
from deit_jax.console import HEAD_NAMES
from deit_jax.errors import UserError
from deit_jax.evaluation.heads import answer_of
from deit_jax.evaluation.run import protocol_line
from deit_jax.models.protocol import fusion_of, is_distilled
from deit_jax.network import Network
from deit_jax.printable import in_one_line
from deit_jax.storage.workdir import ENVIRONMENT, EVALUATION, RESULTS, Workdir
from deit_jax.training.record import read_config
from deit_jax.training.results import read_results
from deit_jax.training.state import count_parameters
from deit_jax.version import __version__

_LIBRARIES = {"timm": "timm", "hf": "transformers", "flax": "deit_jax"}
# Fields that describe the machine or where files are, not the recipe.
_NOT_RECIPE = ("data.path", "unlabelled.path", "evaluation.extra", "data.index", "data.copies_gib", "data.num_threads",
    "data.num_workers", "data.prefetch_batches", "model.weights", "teacher.weights", "teacher.answers", "teacher.record",
    "published", "log", "parallel", "checkpoint")  # fmt: skip
# Fields that a network depends on and that not every mode reads from the files next to its weights.
_NOT_IN_WEIGHTS = (("model", "fusion"), ("evaluation", "protocol"), ("evaluation", "crop_ratio"), ("augment", "mean"),
    ("augment", "std"))  # fmt: skip


def model_card(workdir: Workdir, network: Network, *, layout: str, repository: str, licence: str) -> str:
    """Returns the model card of a run's exported network, as Markdown with the hub's metadata.

    licence: the identifier of the weights' licence on the hub; "": the card says that none is stated.
    """
    record = read_config(workdir)
    config = recorded_config(record)
    results = _results(workdir, network, record)
    environment = _read(workdir, ENVIRONMENT) or {}
    data = _data(config)
    sections = {
        "How to use it": _usage(layout, repository, network, config),
        "Scores": _scores(results, network),
        "Data": _data_section(record, data),
        "Recipe": _recipe(config, record, network),
        "Initial weights": _initial(config, record),
        "Teacher": _teacher(config, record, results),
        "Command": _command(environment),
        "Licence": f"The weights: {licence}." if licence else "No licence is stated for these weights.",
        "Not verified": _not_verified(layout, network, results),
    }
    title = f"# {repository.partition('/')[2]}\n\n{_lead(config, network, layout, data)}"
    body = "\n\n".join([title, *(f"## {name}\n\n{text}" for name, text in sections.items() if text)])
    return f"---\n{_metadata(layout, licence, network, results, repository, data)}---\n\n{body}\n"


def _read(workdir: Workdir, name: str) -> dict[str, Any] | None:
    try:
        content = workdir.read_json(name)
    except UserError:  # a damaged file is like a missing one
        return None
    return content if isinstance(content, dict) else None


def _results(workdir: Workdir, network: Network, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the scores of the exported weights: of the run's end or --mode=eval, after the same step; None: not known.

    --mode=eval may have read other images, so its scores count only if they are of the run's evaluation images, by their digest.
    """
    own_data = record["resolved"].get("data", {}).get("evaluation", {})
    for name in (RESULTS, EVALUATION):
        found = None
        with contextlib.suppress(UserError):  # a damaged file is like a missing one
            found = read_results(workdir, name)
        if found is None or found["step"] != network.step or network.which not in found["scores"]:
            continue
        same_data = name == RESULTS or (bool(own_data.get("digest")) and found.get("data") == own_data)
        if same_data and found.get("protocol", {}).get("crop", network.image_size) == network.image_size:
            return found
    return None


def _metadata(
    layout: str, licence: str, network: Network, results: Mapping[str, Any] | None, repository: str, data: str
) -> str:
    """Returns the hub's metadata; each value is JSON, which YAML includes."""
    fields: dict[str, Any] = {
        **({"license": licence} if licence else {}),
        "library_name": _LIBRARIES[layout],
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", _LIBRARIES[layout], *(["deit_jax"] if layout != "flax" else []), "jax"],
    }
    if results is not None:
        score = answer_of(results["scores"][network.which], fusion_of(network.model))
        metrics = [
            {"type": "accuracy", "name": f"top-{k} (%)", "value": round(score[f"top{k}"], 4)}
            for k in (1, 5)
            if score.get(f"top{k}") is not None
        ]
        fields["model-index"] = [
            {
                "name": repository.partition("/")[2],
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"name": data, "type": "image-classification", "split": "evaluation"},
                        "metrics": metrics,
                    }
                ],
            }
        ]
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in fields.items())


def _lead(config: ConfigDict, network: Network, layout: str, data: str) -> str:
    which = "The weights are the moving average" if network.which == "ema" else "The weights are those"
    return (
        f"{network.name}, {count_parameters(network.variables):,} parameters, {network.image_size} pixels, "
        f"{network.model.num_classes:,} classes, trained on {data} with deit_jax {__version__}. {which} after "
        f"step {network.step:,}, in the layout of {_LIBRARIES[layout]}."
    )


def _usage(layout: str, repository: str, network: Network, config: ConfigDict) -> str:
    code = {
        "timm": f'import timm\n\nmodel = timm.create_model("hf_hub:{repository}", pretrained=True).eval()',
        "hf": "from PIL import Image\nfrom transformers import AutoImageProcessor, AutoModelForImageClassification\n\n"
        f'processor = AutoImageProcessor.from_pretrained("{repository}")\n'
        f'model = AutoModelForImageClassification.from_pretrained("{repository}")\n'
        'inputs = processor(Image.open("photo.jpg"), return_tensors="pt")\n'
        "print(model.config.id2label[model(**inputs).logits.argmax().item()])",
    }.get(layout)
    shown = f"```python\n{code}\n```\n\n" if code else ""
    own = own_flags(repository, network, config)
    return f"{shown}In deit_jax, to fine-tune, evaluate or classify images: `{own}`."


def own_flags(repository: str, network: Network, config: ConfigDict) -> str:
    """Returns the flags of run.py that specify a pushed network of a run with this configuration."""
    fields: dict[str, Any] = {"model.weights": f"hf:{repository}", "model.name": network.name}
    fields |= {f"model.overrides.{name}": value for name, value in config.model.overrides.items()}
    fields["image_size"] = network.image_size
    default = default_config()
    for section, name in _NOT_IN_WEIGHTS:
        if config[section][name] != default[section][name]:
            fields[f"{section}.{name}"] = config[section][name]
    return " ".join(shlex.quote(f"--config.{name}={value}") for name, value in fields.items())


def _scores(results: Mapping[str, Any] | None, network: Network) -> str:
    if results is None:
        return f"These weights (after step {network.step:,}) were not evaluated in the run's folder."
    rows = "\n".join(
        f"| {HEAD_NAMES[head]} | {_percent(score['top1'])} | {_percent(score.get('top5'))} | {score['loss']:.4f} |"
        for head, score in results["scores"][network.which].items()
    )
    table = f"| head | top-1 % | top-5 % | loss |\n|---|---|---|---|\n{rows}"
    text = f"On {results['eval_images']:,} evaluation images, by head:\n\n{table}"
    if protocol := results.get("protocol"):
        text += f"\n\nProtocol {protocol_line(protocol)}."
    if unreadable := results.get("unreadable_images"):
        text += f" {unreadable:,} images that cannot be read are left out."
    for name, extra in results.get("extra", {}).items():
        score = answer_of(extra["scores"][network.which], fusion_of(network.model))
        text += f"\n\n{in_one_line(name)}: top-1 {_percent(score['top1'])} % on {extra['images']:,} images."
    return text


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _data(config: ConfigDict) -> str:
    data = config.data
    if data.source == "tfds":
        return in_one_line(data.name)
    if data.source == "fashion_mnist_10k":
        return "Fashion-MNIST (12,000 images, embedded in deit_jax)"
    return in_one_line(os.path.basename(data.path.rstrip("/")) or data.source)


def _data_section(record: Mapping[str, Any], name: str) -> str:
    found = record["resolved"].get("data", {})
    kinds = {"train": "training", "unlabelled": "unlabelled", "evaluation": "evaluation"}
    lines = [
        f"* {found[kind]['images']:,} {what} images"
        + (f", digest `{found[kind]['digest']}`" if found[kind]["digest"] else "")
        for kind, what in kinds.items()
        if kind in found
    ]
    return "\n".join(
        [f"{name}; the digests cover names or contents, as `data.source` determines (docs/data.md).\n", *lines]
    )


def _recipe(config: ConfigDict, record: Mapping[str, Any], network: Network) -> str:
    steps, per_epoch = network.step or 0, record["resolved"]["steps_per_epoch"]
    optimizer = config.optimizer
    text = (
        f"{steps:,} steps of {config.train.batch_size:,} images, {steps / per_epoch:.4g} epochs; {optimizer.name}, weight decay "
        f"{optimizer.weight_decay:g}, {config.schedule.kind} cosine schedule, seed {config.seed}; distillation: "
        f"{config.distillation.kind}."
    )
    if network.finished is False:
        text += " The training was not finished."
    fields = "\n".join(f"{name} = {json.dumps(value)}" for name, value in _changed(record))
    return f"{text}\n\nOptions that differ from deit_jax's defaults:\n\n```\n{fields}\n```"


def _changed(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the options of the recipe that are not at their defaults."""
    defaults = json.loads(default_config().to_json_best_effort())

    def walk(fields: Mapping[str, Any], known: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in sorted(fields.items()):
            path, default = f"{prefix}{name}", known.get(name) if isinstance(known, Mapping) else None
            if path in _NOT_RECIPE or value == default:
                continue
            if path == "teacher.recipe" and isinstance(value, Mapping):
                yield from ((f"{path}.{inner}", changed) for inner, changed in walk(value, defaults, ""))
                continue
            if isinstance(value, Mapping) and isinstance(default, Mapping) and default:
                yield from walk(value, default, f"{path}.")
            else:
                yield path, value

    yield from walk(completed(record["config"]), defaults, "")


def _initial(config: ConfigDict, record: Mapping[str, Any]) -> str:
    """What the training started from. Of a local path, only the last part is shown."""
    weights = str(record["config"]["model"].get("weights", ""))
    digest = record["resolved"].get("initial", {}).get("weights", "")
    if not weights:
        return "Random."
    known = {
        "pretrained": f"The published weights of {config.model.name}",
        "embedded": "The weights that deit_jax includes",
    }
    shown = weights if weights.startswith("hf:") else f"`{in_one_line(os.path.basename(weights.rstrip('/')))}`"
    reset = "; the heads were reset" if config.model.reset_heads else ""
    return known.get(weights, shown) + (f" (digest `{digest}`)" if digest else "") + reset + "."


def _teacher(config: ConfigDict, record: Mapping[str, Any], results: Mapping[str, Any] | None) -> str:
    if not needs_teacher(config):
        return "None."
    teacher, resolved = record["config"]["teacher"], record["resolved"]
    if (answers := resolved.get("answers")) is not None:
        text = f"Recorded answers of {in_one_line(str(answers['teacher']))}"
    else:
        weights = str(teacher.get("weights", ""))
        shown = weights if weights in ("pretrained", "embedded", "random") or weights.startswith("hf:") else ""
        origin = f", weights: {shown}" if shown else ", trained before the student" if teacher.get("recipe") else ""
        text = f"{in_one_line(str(teacher['name']))}{origin}"
    text += f"; distillation: {config.distillation.kind}."
    if results is not None and results.get("teacher"):
        head, score = next(iter(results["teacher"].items()))
        text += f" Its top-1 on the same images: {_percent(score['top1'])} % ({HEAD_NAMES[head]})."
    if results is not None and (figures := (results.get("recorded_teacher") or {}).get("decisions")) is not None:
        text += f" On its training images {described_figures(figures)}."
    return text


def _command(environment: Mapping[str, Any]) -> str:
    command = str(environment.get("command", ""))
    if not command:
        return "Not recorded: the training was not finished."
    command = _without_local_paths(command)
    versions = ", ".join(
        f"{name} {environment[name]}" for name in ("deit_jax", "python", "jax", "flax") if name in environment
    )
    return f"```\n{in_one_line(command)}\n```\n\n{versions}; {environment.get('devices', 'devices unknown')}."


def _without_local_paths(command: str) -> str:
    """Replaces the home folder in a command by ~, and the folders of other absolute paths by an ellipsis."""
    home = os.path.expanduser("~")
    command = command.replace(home, "~") if home not in ("~", "/") else command
    try:
        words = shlex.split(command)
    except ValueError:  # not as this package records it
        words = command.split()
    values = {part for word in words for part in word[word.find("=") + 1 if word[:2] == "--" else 0 :].split(",")}
    paths = [value for value in values if value.startswith("/") and value.rstrip("/").count("/") > 1]
    for path in sorted(paths, key=len, reverse=True):
        command = command.replace(path, f".../{os.path.basename(path.rstrip('/'))}")
    return command


def _not_verified(layout: str, network: Network, results: Mapping[str, Any] | None) -> str:
    lines = [
        "The scores are of the run's own evaluation, not computed again from the uploaded file."
        if results is not None
        else "The accuracy of these weights.",
        "One training with one seed: no variation between runs is known.",
    ]
    if layout in ("timm", "hf"):
        lines.append(f"The uploaded file was not loaded by {_LIBRARIES[layout]} for this card.")
    if is_distilled(network.model) and fusion_of(network.model) != "logits" and layout != "flax":
        lines.append(
            f"{_LIBRARIES[layout]} averages the logits of the two heads, this run used another fusion, "
            f"{fusion_of(network.model)}."
        )
    if network.finished is False:
        lines.append("The training was not finished.")
    lines.append("Robustness, fairness and use on other data.")
    return "\n".join(f"* {line}" for line in lines)
