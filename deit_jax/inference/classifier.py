"""From images to class names: the public `Classifier`."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import flax.linen as nn
import jax
import numpy as np
from PIL import Image

from deit_jax.data.decoding import CenterCrop, EvaluationCrop
from deit_jax.data.given_images import is_one_image, read_image
from deit_jax.errors import UserError, refuse_address, require_choice
from deit_jax.evaluation.heads import head_names, heads, outputs_of, own_head
from deit_jax.models import create_model, native_image_size
from deit_jax.network import Network, load_network
from deit_jax.network_sources import IMAGENET_CLASSES, Wanted
from deit_jax.storage.bucket import bucket_address
from deit_jax.weights.cards import IMAGENET_MEAN, IMAGENET_STD
from deit_jax.weights.class_names import readable
from deit_jax.weights.loading import WHICH

ImageLike = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | np.ndarray

_computing_process: int | None = None  # the first with a Classifier among this process and its ancestors by fork


class Prediction(NamedTuple):
    """One predicted class of an image."""

    label: str  # the class's name, or its index if it has none
    index: int  # type: ignore[assignment]  # from 0; hides tuple.index
    probability: float  # in [0, 1]


class PredictionError(UserError):
    """An invalid argument or use of a classifier. The message is one line."""


class Classifier:
    """Classifies images: reads, crops, normalises and batches them as in the model's evaluation.

        classifier = deit_jax.Classifier.from_workdir("runs/flowers")
        classifier("rose.jpg")                          # [Prediction(label="rose", index=3, probability=0.97), ...]
        classifier(["rose.jpg", pil_image, array])      # a list of such lists
        classifier.probabilities("rose.jpg")            # float32[1, K]

    An image is a path, an open file or BytesIO, the bytes of an encoded image, a PIL image, or a uint8 array [H, W, 3] of RGB.
    Several images are an iterable of these, or a uint8 array [N, H, W, 3]. Images may differ in size.

    Runs on JAX's default device in batches of `batch_size`; the last batch is padded to the next of `batch_sizes`, the powers of
    two up to `batch_size` and itself: 1, 2, 4, 8. One program is compiled per size, on first use. The batch affects an image's
    probabilities only by float noise.

    Threads may share a classifier. It can be pickled, and works in processes that `multiprocessing` starts by "spawn" or
    "forkserver". It raises PredictionError in a forked copy of a process that has used it, because JAX cannot compute there.

    Attributes: model, variables, crop (of data/decoding.py), mean, std, class_names (or None), description (name and origin of
    the weights), batch_size, batch_sizes, heads (valid values of `head`).
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Any,
        *,
        crop: EvaluationCrop,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        class_names: Sequence[str] | None = None,
        description: str = "",
        batch_size: int = 8,
    ) -> None:
        """`from_workdir`, `from_pretrained`, `from_weights` and `from_network` determine the arguments.

        Raises PredictionError for more names than classes, batch_size below 1, and arguments of the wrong type.
        """
        if isinstance(model, str):
            raise PredictionError(f"model={model!r} is a name: Classifier.from_weights and from_pretrained take names")
        if isinstance(crop, str) or not callable(crop):
            raise PredictionError(f"crop={crop!r}: give a crop, e.g. deit_jax.data.decoding.CenterCrop(224)")
        _require_count("batch_size", batch_size, "images")
        _require_names(class_names)
        if class_names is not None and len(class_names) > model.num_classes:
            raise PredictionError(f"{len(class_names)} class names for a model of {model.num_classes} classes")
        self.model = model
        self.variables = variables
        self.crop = crop
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self.class_names = None if class_names is None else tuple(str(name) for name in class_names)
        self.description = description
        self.batch_size = int(batch_size)
        self.batch_sizes = tuple(sorted({self.batch_size, *(2**i for i in range(self.batch_size.bit_length()))}))
        self.heads = head_names(model)
        self._predict = self._program()
        self._to_device()

    def _program(self) -> Any:
        """Returns the jitted function (variables, uint8[B, size, size, 3]) -> {head: float32[B, K]}."""
        outputs = outputs_of(self.model, self.mean, self.std)

        @jax.jit
        def predict(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
            return {name: jax.nn.softmax(logits) for name, logits in heads(outputs(variables, images)).items()}

        return predict

    def _to_device(self) -> None:
        global _computing_process
        _refuse_forked_process()
        _computing_process = os.getpid()
        self.variables = jax.device_put(self.variables)
        self._on_device = True

    def __getstate__(self) -> dict[str, Any]:
        _refuse_forked_process()
        state = {name: value for name, value in vars(self).items() if name != "_predict"}
        return state | {"variables": jax.tree.map(np.asarray, self.variables), "_on_device": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Does not use the device: an error while a pool's worker unpickles a task would leave the pool waiting.
        vars(self).update(state)
        self._predict = self._program()

    def __repr__(self) -> str:
        return f"Classifier({self.description or type(self.model).__name__}, {self.model.num_classes} classes)"

    @classmethod
    def from_network(
        cls, network: Network, *, class_names: Sequence[str] | None = None, batch_size: int = 8
    ) -> Classifier:
        """Creates a classifier from `deit_jax.network.load_network`; unknown preprocessing is the released code's.

        class_names: None: the network's own.
        """
        preprocessing = network.preprocessing
        if class_names is None and network.class_names is not None:
            class_names = readable(network.class_names)
        return cls(
            network.model,
            network.variables,
            crop=network.crop or CenterCrop(network.image_size, preprocessing.crop_ratio),
            mean=preprocessing.mean,
            std=preprocessing.std,
            class_names=class_names,
            description=network.description,
            batch_size=batch_size,
        )

    @classmethod
    def from_workdir(
        cls,
        workdir: str | Path,
        variables: str = "raw",
        checkpoint: str | int = "newest",
        *,
        image_size: int | None = None,
        batch_size: int = 8,
    ) -> Classifier:
        """Loads the network of a training run, with the run's crop, normalisation, fusion of heads and class names.

        workdir: a folder, gs://BUCKET/RUN or s3://BUCKET/RUN. variables: "raw" or "ema", their moving average. checkpoint:
        "newest", "best" or a step. image_size: pixels; None: the run's own; another size resizes the position embedding. Raises
        PredictionError for other values, ConfigError if the folder is not a workdir, CheckpointError if it does not hold such
        weights.
        """
        _refuse_forked_process()
        require_choice("variables", variables, WHICH, PredictionError)
        if checkpoint not in ("newest", "best") and not str(checkpoint).isdecimal():
            raise PredictionError(
                f"checkpoint={checkpoint!r} is none of newest (the last one), best (of the highest top-1) and a step"
            )
        if bucket_address(workdir) is None:
            workdir = Path(os.path.expanduser(workdir))
        network = load_network(
            workdir, kind="workdir", which=variables, checkpoint=str(checkpoint), image_size=image_size
        )
        return cls.from_network(network, batch_size=batch_size)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        image_size: int | None = None,
        crop_ratio: float = 0.875,
        batch_size: int = 8,
        **overrides: Any,
    ) -> Classifier:
        """Loads a model of `deit_jax.list_pretrained()` and its published ImageNet weights; needs huggingface_hub.

        image_size: pixels; None: the model's own. crop_ratio: the released code's by default. **overrides: as in `create_model`.
        Raises as `load_pretrained`.
        """
        _refuse_forked_process()
        _require_count("batch_size", batch_size, "images")
        network = load_network("pretrained", _wanted(name, None, overrides), image_size=image_size)
        crop = CenterCrop(network.image_size, crop_ratio)
        return cls.from_network(dataclasses.replace(network, crop=crop), batch_size=batch_size)

    @classmethod
    def from_weights(
        cls,
        path: str | Path,
        name: str,
        *,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        image_size: int | None = None,
        crop_ratio: float | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        batch_size: int = 8,
        **overrides: Any,
    ) -> Classifier:
        """Loads weights of the model `name` from a file or folder that `deit_jax.load_weights` reads.

        class_names, image_size (pixels), crop_ratio, mean, std: None: those declared in the file or the config.json next to it,
        else none, the model's own size, and the released code's. Another image size resizes the position embedding, with a
        warning if it is not `image_size`. num_classes: None: the number of `class_names`, or that of the file's head.
        **overrides: as in `create_model`. Raises WeightsError if the file cannot be read or does not fit, ValueError for an
        unknown model.
        """
        _refuse_forked_process()
        refuse_address("path", path, PredictionError)
        _require_names(class_names)
        num_classes = num_classes or (None if class_names is None else len(class_names))
        network = load_network(path, _wanted(name, num_classes, overrides), kind="file", image_size=image_size)
        given: dict[str, Any] = {} if crop_ratio is None else {"crop": CenterCrop(network.image_size, crop_ratio)}
        given |= {name: tuple(value) for name, value in (("mean", mean), ("std", std)) if value is not None}
        return cls.from_network(dataclasses.replace(network, **given), class_names=class_names, batch_size=batch_size)

    def __call__(
        self, images: ImageLike | Iterable[ImageLike], top_k: int = 5, *, head: str | None = None
    ) -> list[Prediction] | list[list[Prediction]]:
        """Returns the `top_k` most probable classes, best first: a list for one image, a list of lists for several.

        head: as in `probabilities`. Raises DataError for an invalid image, PredictionError for an unknown head, top_k below 1, or
        in a forked process.
        """
        _require_count("top_k", top_k, "classes")
        predictions = [self._best(row, top_k) for row in self.probabilities(images, head=head)]
        return predictions[0] if is_one_image(images) else predictions

    def probabilities(self, images: ImageLike | Iterable[ImageLike], *, head: str | None = None) -> np.ndarray:
        """Returns the probabilities of all classes, float32[N, K].

        head: one of `self.heads`: "class", "distillation", "fused_logits" (mean of the logits) and "fused_softmax"; None: the
        model's own prediction (for a distilled model its heads fused by `model.fusion`). Raises as `__call__`.
        """
        if head is None:
            head = own_head(self.model)
        else:
            require_choice("head", head, self.heads, PredictionError)
        if not self._on_device:
            self._to_device()
        _refuse_forked_process()
        many = cast(Iterable[ImageLike], [images] if is_one_image(images) else images)
        parts = [np.asarray(self._predict(self.variables, batch)[head])[:count] for batch, count in self._batches(many)]
        return np.concatenate(parts) if parts else np.zeros((0, self.model.num_classes), np.float32)

    def prepare(self, image: ImageLike) -> np.ndarray:
        """Returns the model's input before normalisation, uint8[size, size, 3]. Raises DataError."""
        return self.crop(read_image(image))

    def label(self, index: int) -> str:
        """Returns the name of class `index`, or the index if it has none."""
        return self.class_names[index] if self.class_names and index < len(self.class_names) else str(index)

    def _best(self, probabilities: np.ndarray, top_k: int) -> list[Prediction]:
        order = np.argsort(-probabilities, kind="stable")[:top_k]  # among equals the lower index first, as argmax
        return [Prediction(self.label(int(index)), int(index), float(probabilities[index])) for index in order]

    def _batches(self, images: Iterable[ImageLike]) -> Iterator[tuple[np.ndarray, int]]:
        """Yields batches uint8[B, size, size, 3], padded with black, and their number of images; B is one of `batch_sizes`."""
        named = ((image, f"image {i}") for i, image in enumerate(images))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            while group := list(itertools.islice(named, self.batch_size)):
                rows = next(size for size in self.batch_sizes if size >= len(group))
                batch = np.zeros((rows, self.crop.size, self.crop.size, 3), np.uint8)
                batch[: len(group)] = list(threads.map(lambda entry: self.crop(read_image(*entry)), group))
                yield batch, len(group)


def _wanted(name: str, num_classes: int | None, overrides: dict[str, Any]) -> Wanted:
    """Returns `Wanted` for a model name. Raises ValueError for an unknown one."""

    def build(num_classes: int, image_size: int) -> nn.Module:
        return create_model(name, num_classes, image_size, **overrides)

    return Wanted(name, build, native_image_size(name), num_classes, likely_classes=IMAGENET_CLASSES)


def _refuse_forked_process() -> None:
    """Raises PredictionError where JAX would hang: its threads do not exist in a forked copy of a process."""
    if _computing_process not in (None, os.getpid()):
        raise PredictionError(
            f"process {os.getpid()} was forked from one that already had a Classifier, and JAX cannot compute there: "
            "use multiprocessing.get_context('spawn'), to which a Classifier can be passed, or fork before the first is made"
        )


def _require_count(name: str, value: Any, what: str) -> None:
    if not isinstance(value, int | np.integer) or value < 1:
        raise PredictionError(f"{name}={value!r}: give 1 or more {what}")


def _require_names(class_names: Any) -> None:
    if isinstance(class_names, str):
        raise PredictionError(f"class_names={class_names!r} is one string: give a list of names, one per class")
