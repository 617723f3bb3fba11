"""The paper's rows as commands of this project, and what each training costs."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from deit_jax.config import needs_teacher
from deit_jax.data.known_sets import KNOWN_SETS
from deit_jax.data.sampling import selected_positions
from deit_jax.errors import UserError
from deit_jax.models import create_model, native_image_size
from deit_jax.models.flops import forward_flops
from deit_jax.paper.rows import Row, rows_of
from deit_jax.recipes.files import find_config

# In the order of the list. The quick start does not reproduce a row.
FILES = ("deit", "teacher", "distillation", "finetune", "transfer", "ablation", "search")
# The hours assume these devices; nothing is measured.
DEVICES, PEAK_FLOPS, UTILISATION = 8, 312e12, 0.4
ASSUMPTION = "8 A100 at 40 % of their bfloat16 peak of 312 TFLOP/s"


@dataclasses.dataclass(frozen=True)
class Command:
    """A row and the file that reproduces it."""

    file: str  # "deit"
    row: Row
    get_config: Callable[[str], ConfigDict]

    @property
    def name(self) -> str:
        """The value of --config=."""
        return f"configs/{self.file}.py:{self.row.argument}"

    @property
    def inputs(self) -> list[str]:
        """The rows that this one needs, e.g. ["from deit.py:base", "teacher teacher.py:regnety_160"]."""
        return [f"{word} {name}" for word, name in (("from", self.row.start), ("teacher", self.row.teacher)) if name]

    def config(self) -> ConfigDict:
        """The configuration of the row."""
        return self.get_config(self.row.argument)


def load_commands() -> list[Command]:
    """Loads all rows of the files configs/FILE.py that --config finds here, ordered by tables, figures and sections.

    Raises UserError if one of the files belongs to another project.
    """
    commands = []
    for file in FILES:
        path = find_config(f"configs/{file}.py")
        spec = importlib.util.spec_from_file_location(f"deit_jax_configs_{file}", path)
        assert spec is not None and spec.loader is not None  # the file exists and ends in .py
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, "publish"):
            raise UserError(f"--list: {path} belongs to another project: run this command in another folder")
        commands += [Command(file, row, module.get_config) for row in rows_of(file)]
    return sorted(commands, key=lambda command: _rank(command.row.where))


def _rank(where: str) -> tuple[int, int]:
    kind, number = where.split()
    return ("Table", "Figure", "Section").index(kind), int(number)


def select(commands: Sequence[Command], wanted: str) -> list[Command]:
    """Selects the commands of a table, figure, section or file, e.g. "table8", "figure 3" or "ablation"; "all" selects all.

    Raises UserError if there are none.
    """

    def plain(text: str) -> str:
        return re.sub(r"\W", "", text).lower()

    if plain(wanted) in ("", "all"):
        return list(commands)
    selected = [command for command in commands if plain(wanted) in (plain(command.row.where), plain(command.file))]
    if not selected:
        places = list(dict.fromkeys(plain(command.row.where) for command in commands))
        raise UserError(f"--list={wanted}: give one of {', '.join([*places, *FILES])}")
    return selected


class Cost(NamedTuple):
    """The cost of one training."""

    images: int  # passed through the network, with repeats and epochs
    student_flops: int  # per image, forward and backward
    teacher_flops: int  # per image, forward; 0 without a teacher

    @property
    def exaflop(self) -> float:
        """The total in 10^18 floating-point operations."""
        return self.images * (self.student_flops + self.teacher_flops) / 1e18

    @property
    def hours(self) -> float:
        """The time in hours under ASSUMPTION."""
        return self.exaflop * 1e18 / (DEVICES * PEAK_FLOPS * UTILISATION) / 3600


def training_cost(config: ConfigDict) -> Cost:
    """Returns the cost of a configuration on one of KNOWN_SETS: model FLOPs (models/flops.py) of student and teacher.

    The backward pass counts as two forward passes, even for frozen layers. Augmentation, optimizer and evaluation do not count.
    """
    batch_size = config.train.batch_size
    steps_per_epoch = selected_positions(KNOWN_SETS[config.data.name].train_images) // batch_size
    image_size = config.image_size or native_image_size(config.model.name)
    teachers = config.teacher.name.split(",") if needs_teacher(config) else []
    return Cost(
        images=config.train.epochs * steps_per_epoch * batch_size,
        student_flops=3 * _forward_flops(config.model.name, config.num_classes, image_size),
        teacher_flops=sum(_forward_flops(name, config.num_classes, image_size) for name in teachers),
    )


@functools.cache
def _forward_flops(name: str, num_classes: int, image_size: int) -> int:
    return forward_flops(create_model(name, num_classes, image_size), image_size)
