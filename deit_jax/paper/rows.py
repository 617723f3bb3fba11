"""The rows of the paper's tables and the points of its figures, each with the configuration that reproduces it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

from ml_collections import ConfigDict

from deit_jax.paper import tables


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table, or a point of a figure, reproduced by one command."""

    where: str  # "Table 8", "Figure 3", "Section 4"
    argument: str  # the configuration file's argument, after the colon
    what: str  # description
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)  # top-1 in percent, by data set or head
    note: str = ""
    start: str = ""  # file:argument of the run whose workdir goes to --config.model.weights
    teacher: str = ""  # file:argument of the run whose workdir goes to --config.teacher.weights


# The words that occur in arguments.
_LABELS = {"tiny": "DeiT-Ti", "small": "DeiT-S", "base": "DeiT-B"}
_TEACHER = "teacher.py:regnety_160"
_DATA_SETS = {  # Table 6's names
    "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "flowers": "Flowers-102", "cars": "Stanford Cars",
    "inat18": "iNaturalist 2018", "inat19": "iNaturalist 2019",
}  # fmt: skip
_CHANGES = (  # in the order of Table 8's rows
    "default", "sgd", "sgd_finetuning", "no_rand_augment", "auto_augment", "no_mixup", "no_cutmix", "no_mixup_cutmix",
    "no_erasing", "no_stochastic_depth", "no_repeated_augmentation", "dropout", "ema",
)  # fmt: skip


def _deit() -> list[Row]:
    rows = [
        Row("Table 1", size, _LABELS[size],
            note=f"{row.parameters / 1e6:g} M parameters, {row.images_per_second:g} images/s")
        for size, row in zip(_LABELS, tables.TABLE_1, strict=True)
    ]  # fmt: skip
    rows.append(Row("Table 2", "base", "DeiT-B, the teacher", {"ImageNet": tables.TABLE_2[0].teacher_top1}))
    none = tables.TABLE_3[0]
    rows += [
        Row("Table 3", size, f"{label}, no teacher", {"ImageNet": getattr(none, size)})
        for size, label in _LABELS.items()
    ]
    rows.append(Row("Table 4", "base", "DeiT", note=f"wrong on {100 * tables.TABLE_4[0][2]:.1f} % of the images"))
    for row in tables.TABLE_5:
        if not row.model.startswith("deit") or row.image_size != 224:
            continue
        size, distilled = row.model.split("_")[1], "distilled" in row.model
        argument = size + ",distilled" * distilled + ",1000" * (row.epochs == 1000)
        what = row.label + (f", {row.epochs} epochs" if row.epochs != 300 else "")
        rows.append(Row("Table 5", argument, what, row.figures, teacher=_TEACHER if distilled else ""))
    imagenet = tables.TABLE_6["ImageNet"]
    vit = next(row for row in tables.TABLE_5 if row.label.startswith("ViT-B"))
    middle = next(row for row in tables.TABLE_10 if row.image_size == 224)
    rows += [
        Row("Table 6", "base", "ImageNet",
            note=f"{imagenet.train_images:,} / {imagenet.test_images:,} images, {imagenet.classes} classes"),
        Row("Table 9", "base", "DeiT-B's column", {"ImageNet": tables.TABLE_8[0].top1}),
        Row("Table 9", "vit_base", "ViT-B's column",
            note=f"{vit.imagenet} after fine-tuning at {vit.image_size} pixels (Table 5)"),
        Row("Table 10", "base", "224 pixels, as trained",
            {"ImageNet": middle.imagenet, "ReaL": middle.real, "V2": middle.v2}),
    ]  # fmt: skip
    rows += [
        Row("Figure 3", f"base,{epochs}" if epochs != 300 else "base", f"no teacher, {epochs} epochs",
            {"ImageNet": tables.FIGURE_3_NO_DISTILLATION} if epochs != 300 else {"ImageNet": none.base},
            note="the dotted line: no gain after about 400 epochs" if epochs != 300 else "")
        for epochs in tables.FIGURE_3_EPOCHS
    ]  # fmt: skip
    return rows


def _teachers() -> list[Row]:
    rows = [
        Row(
            "Table 2",
            row.teacher,
            f"RegNetY-{row.teacher[-3:-1].lstrip('0')}GF, a teacher",
            {"ImageNet": row.teacher_top1},
        )
        for row in tables.TABLE_2
        if row.teacher.startswith("regnety")
    ]
    rows += [
        Row("Table 2", f"{row.argument},384px", f"{row.what} at 384 pixels", note="no figure published",
            start=f"teacher.py:{row.argument}")
        for row in rows
    ]  # fmt: skip
    rows.append(
        Row("Table 4", "regnety_160", "RegNetY", note=f"wrong on {100 * tables.TABLE_4[0][1]:.1f} % of the images")
    )
    return rows + [
        Row("Table 5", row.model, row.label, row.figures) for row in tables.TABLE_5 if row.model.startswith("regnety")
    ]


def _teacher_of(word: str, at_384: bool) -> str:
    if word == "deit_base":
        return "finetune.py:384px" if at_384 else "deit.py:base"
    return f"teacher.py:{word}" + ",384px" * at_384


def _table_2() -> list[Row]:
    rows = []
    for row in tables.TABLE_2:
        word = row.teacher.removesuffix("_patch16_224")
        argument, what = f"token,base,{word}", f"DeiT-B distilled by {word}"
        rows += [
            Row("Table 2", argument, what, {"ImageNet": row.student_top1}, teacher=_teacher_of(word, False)),
            Row("Table 2", f"{argument},384px", f"{what}, at 384 pixels", {"ImageNet": row.student_384_top1},
                start=f"distillation.py:{argument}", teacher=_teacher_of(word, True)),
        ]  # fmt: skip
    return rows


def _table_3() -> list[Row]:
    rows = []
    labels = _LABELS | {"base_384": "DeiT-B at 384 pixels"}
    for kind, token in (("soft", False), ("hard", False), ("hard", True)):
        word = "token" if token else kind
        lines = [row for row in tables.TABLE_3 if (row.kind, row.token) == (kind, token)]
        for size, label in labels.items():
            student, at_384 = size.removesuffix("_384"), size.endswith("_384")
            heads = {
                f"{line.head} head" if line.head != "both" else "both heads": getattr(line, size) for line in lines
            }
            rows.append(
                Row("Table 3", f"{word},{student}" + ",384px" * at_384, f"{label}, {word if token else word + ' distillation'}",
                    heads if token else {"ImageNet": heads["class head"]},
                    start=f"distillation.py:{word},{student}" if at_384 else "", teacher=_teacher_of("regnety_160", at_384))
            )  # fmt: skip
    return rows


def _table_4() -> Row:
    wrong = [f"{name.removeprefix('distilled DeiT, ')} {100 * value:.1f}"
             for name, value in zip(tables.TABLE_4_NAMES[3:], tables.TABLE_4[0][3:], strict=True)]  # fmt: skip
    note = f"wrong on {', '.join(wrong)} % of the images"
    return Row("Table 4", "token,base", "distilled DeiT", note=note, teacher=_teacher_of("regnety_160", False))


def _figure_3() -> list[Row]:
    rows = []
    words = {"soft distillation": "soft", "hard distillation": "hard", "hard distillation, token": "token"}
    for curve, values in tables.FIGURE_3.items():
        for epochs, value in zip(tables.FIGURE_3_EPOCHS, values, strict=True):
            word = words.get(curve, "token")
            at_224 = f"{word},base" + f",{epochs}" * (epochs != 300)
            note = "" if epochs in tables.FIGURE_3_EXACT[curve] else "read off the plot"
            at_384 = curve not in words
            rows.append(
                Row("Figure 3", f"{word},base,384px" if at_384 else at_224, f"{curve}, {epochs} epochs",
                    {"ImageNet": value}, note, start=f"distillation.py:{at_224}" if at_384 else "",
                    teacher=_teacher_of("regnety_160", at_384))
            )  # fmt: skip
    return rows


def _sections() -> list[Row]:
    rows = [
        Row("Section 4", "token_labels,base", "two class tokens",
            note=f"no better than one; their cosine ends at {tables.TWO_CLASS_TOKENS_COSINE}"),
        Row("Section 4", "token_soft,base", "token, soft distillation", note="no figure published",
            teacher=_teacher_of("regnety_160", False)),
    ]  # fmt: skip
    rows += [
        Row("Section 6", f"{rate},{decay}", f"learning rate {rate}, weight decay {decay}",
            {"ImageNet": tables.TABLE_8[0].top1} if (rate, decay) == ("5e-4", "0.05") else {},
            note="" if (rate, decay) == ("5e-4", "0.05") else "no figure published")
        for rate in ("5e-4", "3e-4", "5e-5")
        for decay in ("0.03", "0.04", "0.05")
    ]  # fmt: skip
    return rows


def _finetune() -> list[Row]:
    none = tables.TABLE_3[0]
    rows = [
        Row("Table 3", "384px", "DeiT-B at 384 pixels, no teacher", {"ImageNet": none.base_384}, start="deit.py:base")
    ]
    for row in tables.TABLE_5:
        if not row.model.startswith("deit") or row.image_size != 384:
            continue
        distilled = ",distilled" * ("distilled" in row.model)
        rows.append(
            Row("Table 5", f"384px{distilled}", row.label + f", {row.epochs} epochs" * (row.epochs != 300), row.figures,
                start=f"deit.py:base{distilled}" + ",1000" * (row.epochs == 1000),
                teacher="teacher.py:regnety_160,384px" if distilled else "")
        )  # fmt: skip
    rows += [
        Row("Table 10", f"{row.image_size}px", f"{row.image_size} pixels",
            {"ImageNet": row.imagenet, "ReaL": row.real, "V2": row.v2}, start="deit.py:base")
        for row in tables.TABLE_10
        if row.image_size != 224
    ]  # fmt: skip
    return rows


def _transfer() -> list[Row]:
    sizes = {label: tables.TABLE_6[label] for label in _DATA_SETS.values()}
    rows = [
        Row("Table 6", f"{word},base", label,
            note=f"{sizes[label].train_images:,} / {sizes[label].test_images:,} images, {sizes[label].classes} classes",
            start="deit.py:base")
        for word, label in _DATA_SETS.items()
    ]  # fmt: skip
    for row in tables.TABLE_7:
        distilled, at_384 = "distilled" in row.model, row.model.endswith("384")
        start = "finetune.py:384px" if at_384 else "deit.py:base"
        rows += [
            Row("Table 7", f"{word},base" + ",distilled" * distilled + ",384px" * at_384,
                "DeiT-B" + " distilled" * distilled + " at 384 pixels" * at_384, {label: getattr(row, word)},
                start=start + ",distilled" * distilled)
            for word, label in _DATA_SETS.items()
        ]  # fmt: skip
    scratch = tables.CIFAR10_FROM_SCRATCH
    teacher = "transfer.py:cifar10,regnety_160,scratch"
    return rows + [
        Row("Table 7", "cifar10,regnety_160,scratch", "RegNetY-16GF from scratch", {"CIFAR-10": scratch["regnety_160"]}),
        Row("Table 7", "cifar10,base,scratch", "DeiT-B from scratch", {"CIFAR-10": scratch["deit_base_patch16_224"]}),
        Row("Table 7", "cifar10,base,distilled,scratch", "DeiT-B distilled, from scratch",
            {"CIFAR-10": scratch["deit_base_distilled_patch16_224"]}, teacher=teacher),
    ]  # fmt: skip


def _ablation() -> list[Row]:
    rows = []
    for word, row in zip(_CHANGES, tables.TABLE_8, strict=True):
        note = "" if row.trained else "did not train"
        if word == "default":
            note = f"± {tables.TABLE_8_DEVIATION[0]}, ± {tables.TABLE_8_DEVIATION[1]} at 384 pixels"
        what = "the recipe" if word == "default" else row.change
        rows += [
            Row("Table 8", word, what, {"ImageNet": row.top1}, note),
            Row("Table 8", f"{word},384px", f"{what}; fine-tuned", {"ImageNet": row.top1_384}, note,
                start=f"ablation.py:{word}"),
        ]  # fmt: skip
    return rows


@functools.cache
def rows_of(file: str) -> tuple[Row, ...]:
    """Returns the rows of configs/`file`.py, e.g. "deit"; () if it reproduces none."""
    sections = _sections()
    rows = {
        "deit": _deit(),
        "teacher": _teachers(),
        "distillation": [
            *_table_2(), *_table_3(), _table_4(), *_figure_3(), *(row for row in sections if row.where == "Section 4")
        ],
        "finetune": _finetune(),
        "transfer": _transfer(),
        "ablation": _ablation(),
        "search": [row for row in sections if row.where == "Section 6"],
    }  # fmt: skip
    return tuple(rows.get(file, ()))


def publish(config: ConfigDict, file: str, argument: str) -> None:
    """Adds to `config.published` the figures of the rows of configs/`file`.py with the words of `argument`, in any order."""
    seen = set()
    for row in rows_of(file):
        if set(row.argument.split(",")) != set(argument.split(",")):
            continue
        for measure, value in row.published.items():
            if (measure, value) not in seen:
                seen.add((measure, value))
                # A dot would split the name of the field.
                name = f"published: {row.what}, {measure} ({row.where})".replace(".", "·")
                with config.unlocked():
                    config.published[name] = value
