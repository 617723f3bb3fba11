"""A teacher on the host: prepares its images, and checks and maps its logits."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.config import ConfigError
from deit_jax.data.classes import difference
from deit_jax.errors import raised_outside, shortened
from deit_jax.host_teacher.identity import fixed_images, relative_difference
from deit_jax.host_teacher.loading import as_array, load_callable
from deit_jax.models.ensemble import renormalisation
from deit_jax.weights.class_names import as_wordnet_ids

# For one model in one process. Half precision differs by about 0.01 between batches, active dropout by more.
_BATCH_TOLERANCE = 0.03
_MOST_COLUMNS = 32  # classes whose logits the identity keeps


class HostTeacher:
    """A teacher that runs on the host, outside of any compiled program.

    Attributes:
        identity: what the answers depend on, in JSON types; `changed_field` compares two.
        description: its name and the conversions of images and classes, for users.
        num_classes: K, the student's classes.
    """

    def __init__(self, spec: str, config: ConfigDict, class_names: Sequence[str], image_size: int):
        """Loads the teacher that `spec` names, and computes its logits for eight fixed images.

        Args:
            spec: my_module:function, timm:NAME or hf:NAME; see `deit_jax.host_teacher`.
            config: a validated configuration: uses `teacher.mean`, `teacher.std` and `teacher.classes`, and the
                normalisation of the student's images.
            class_names: the student's classes, in label order.
            image_size: pixels of the student's images.

        Raises ConfigError, in one line: the teacher cannot be loaded, raises, does not return finite logits
        [B, classes], has logits that depend on the batch, or has other classes.
        """
        self.spec, self._where = spec, f"--teacher={shortened(spec)}"
        self._callable = load_callable(spec, self._where)
        augment, teacher = config.augment, config.teacher
        if teacher.each:
            raise ConfigError(
                f"config.teacher.each is for several teachers, {self._where} is one: use config.teacher.mean, std and classes"
            )
        mean = tuple(teacher.mean or self._callable.mean or augment.mean)
        std = tuple(teacher.std or self._callable.std or augment.std)
        self._warn_of_normalisation(teacher, mean, std)
        self._change = renormalisation((augment.mean, augment.std), (mean, std))
        self._size = self._callable.image_size or image_size
        self._own_classes: int | None = None
        self._columns: tuple[int, ...] | None = None

        pixels = fixed_images(image_size).astype(np.float32) / 255
        images = (pixels - np.asarray(augment.mean, np.float32)) / np.asarray(augment.std, np.float32)
        own = self._ask(images)
        self._refuse_training_mode(images, own)
        self.num_classes = config.num_classes or len(class_names)
        names = self._callable.class_names if self.num_classes == len(class_names) else None
        if names is not None and len(names) != own.shape[1]:
            raise ConfigError(
                f"{self._where} names {len(names)} classes and returns logits of {own.shape[1]}: correct class_names"
            )
        self._columns, how = self._find_columns(config.teacher.classes, names, tuple(class_names), own.shape[1])
        logits = own if self._columns is None else own[:, self._columns]
        kept = np.linspace(0, self.num_classes - 1, min(self.num_classes, _MOST_COLUMNS)).round().astype(int)
        self.identity: dict[str, Any] = {  # with other names than the fields of config.teacher, which are not the same
            "spec": spec,
            "input_mean": [float(value) for value in mean],
            "input_std": [float(value) for value in std],
            "input_size": self._size,
            "own_classes": own.shape[1],
            "columns": None if self._columns is None else list(self._columns),
            "logits": [[float(f"{value:.6g}") for value in row] for row in logits[:, kept]],
        }
        size = f", resized to {self._size} pixels" if self._size != image_size else ""
        self.description = f"{spec}; images normalised by {mean}, {std}{size}{how}"

    def logits(self, images: np.ndarray | jax.Array) -> np.ndarray:
        """Returns float32[B, K], in the student's classes, for images float32[B, S, S, 3], normalised for the student.

        Raises ConfigError, in one line, if the teacher raises or does not return finite logits.
        """
        answer = self._ask(images)
        return answer if self._columns is None else np.ascontiguousarray(answer[:, self._columns])

    def _ask(self, images: np.ndarray | jax.Array) -> np.ndarray:
        """Returns the logits of all of its own classes."""
        if self._change is not None or self._size != images.shape[1]:
            images = _prepared(images, *(self._change or (None, None)), self._size)
        given = np.array(images, np.float32)  # a copy, which the teacher may change
        try:
            answer = self._callable.call(given)
        except (Exception, SystemExit) as error:
            what = raised_outside(error, self._callable.file)
            raise ConfigError(
                f"{self._where} raises {what} for images float32{list(images.shape)}; fix that"
            ) from error
        logits = self._checked(answer, len(images))
        self._own_classes = logits.shape[1]
        return logits

    def _checked(self, answer: Any, rows: int) -> np.ndarray:
        """Converts an answer to float32[rows, K]. Raises ConfigError, in one line, for anything else."""
        wanted = f"return the logits of {rows} images, floating-point [{rows}, {self._own_classes or 'classes'}]"
        logits = as_array(answer)
        if logits is None:
            raise ConfigError(f"{self._where} returns a {type(answer).__name__}: {wanted}")
        if not jnp.issubdtype(logits.dtype, jnp.floating):
            raise ConfigError(f"{self._where} returns {logits.dtype} numbers, not logits: {wanted}")
        if logits.ndim != 2 or len(logits) != rows or logits.shape[1] != (self._own_classes or max(logits.shape[1], 1)):
            raise ConfigError(f"{self._where} returns the shape {list(logits.shape)}: {wanted}")
        logits = np.ascontiguousarray(logits, np.float32)
        bad = np.flatnonzero(~np.isfinite(logits).all(1))
        if len(bad):
            raise ConfigError(
                f"{self._where} returns a NaN or infinite logit for image {bad[0]} of {rows}, counted from 0: find "
                "the cause; such an answer cannot be used"
            )
        return logits

    def _refuse_training_mode(self, images: np.ndarray, logits: np.ndarray) -> None:
        """Calls it again with every other image: dropout, or BatchNorm with the batch's statistics, gives other logits."""
        other = relative_difference(logits[::2], self._ask(images[::2]))
        if other > _BATCH_TOLERANCE:
            raise ConfigError(
                f"{self._where} returns other logits for the same images in another batch (relative difference {other:.1g}): put "
                "the model into evaluation mode (dropout off, BatchNorm by its running statistics)"
            )
        if (logits >= 0).all() and np.allclose(logits.sum(1), 1, atol=1e-3):
            console.warn(
                f"{self._where} returns numbers that add up to 1: probabilities? Return logits, before the softmax"
            )

    def _warn_of_normalisation(self, section: ConfigDict, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Warns if the user's network says nothing about its images: a function may normalise them itself, a network does not."""
        given = {"mean": section.mean or self._callable.mean, "std": section.std or self._callable.std}
        if not self._callable.is_network or None not in given.values():
            return
        lacking = " or ".join(name for name, value in given.items() if value is None)
        console.warn(
            f"{self._where} has no {lacking}: its images are normalised as the student's, mean {mean}, std {std}; if it was "
            "trained otherwise, set config.teacher.mean and config.teacher.std, or its attributes mean and std"
        )

    def _find_columns(
        self, asked: Sequence[int] | None, own_names: tuple[str, ...] | None, class_names: tuple[str, ...], own: int
    ) -> tuple[tuple[int, ...] | None, str]:
        """Returns the teacher's class for each of the student's (None: all, in order), and a description of the mapping.

        asked: config.teacher.classes. own_names: the names of the teacher's classes; None: unknown, or not to be compared.

        Raises ConfigError if these do not fit.
        """
        where, wanted = self._where, self.num_classes
        if asked is not None:
            numbers = tuple(int(number) for number in asked)
            if len(numbers) != wanted:
                raise ConfigError(
                    f"config.teacher.classes names {len(numbers)} of the teacher's classes, the student has {wanted}: name one "
                    "for each"
                )
            if wrong := [number for number in numbers if not 0 <= number < own]:
                raise ConfigError(
                    f"config.teacher.classes asks for class {wrong[0]}, {where} has {own}, counted from 0"
                )
            return numbers, f"; {wanted} of its {own} classes"
        if own_names is not None:
            own_names = as_wordnet_ids(own_names, class_names)
            if own_names == class_names:
                return None, ""
            if any(own_names.count(name) != 1 for name in class_names):
                raise ConfigError(
                    f"{where} has other classes than the student ({difference(own_names, class_names)}): let "
                    "config.teacher.classes name the student's among the teacher's, by numbers"
                )
            return tuple(map(own_names.index, class_names)), f"; {wanted} of its {own} classes, matched by name"
        if own != wanted:
            raise ConfigError(
                f"{where} has {own} classes, the student {wanted}: they must be equal, or config.teacher.classes must name the "
                "student's among the teacher's"
            )
        return None, ""


@functools.partial(jax.jit, static_argnames=("scale", "shift", "size"))
def _prepared(
    images: jax.Array, scale: tuple[float, ...] | None, shift: tuple[float, ...] | None, size: int
) -> jax.Array:
    """Normalises and resizes images for the teacher. The resize is bicubic (a = -0.5), antialiased where it shrinks."""
    images = jnp.asarray(images, jnp.float32)
    if scale is not None:
        images = images * jnp.asarray(scale) + jnp.asarray(shift)
    if images.shape[1] != size:
        images = jax.image.resize(images, (len(images), size, size, 3), "bicubic")
    return images
