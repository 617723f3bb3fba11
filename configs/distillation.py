"""Every kind of distillation and every teacher: Tables 2 and 3, Figure 3, and section 4's control.

    python run.py --config=configs/distillation.py:hard,small --workdir=WORKDIR --config.teacher.weights=TEACHER_WORKDIR
    python run.py --config=configs/distillation.py:hard,base,384px --workdir=WORKDIR_384 \\
        --config.model.weights=WORKDIR --config.teacher.weights=TEACHER_384

Argument: a kind, a student, and any of the rest.
    soft           the class token learns labels and the teacher's probabilities (alpha 0.1, tau 3); "usual distillation"
    hard           the class token learns labels and the teacher's decisions
    token          a distillation token learns the teacher's decisions: DeiT's way, as configs/deit.py:...,distilled
    token_soft     a distillation token learns the teacher's probabilities
    token_labels   no teacher: two class tokens learn the same labels (section 4's control)
    tiny | small | base
    regnety_040 | regnety_080 | regnety_120 | regnety_160 | deit_base     the teacher; RegNetY-16GF if none is named
    384px          the fine-tuning of the trained student, by the same teacher at 384 pixels (configs/teacher.py:...,384px; for
                   DeiT-B configs/finetune.py:384px). The teacher sees what the student sees, also its size
    500 | 800 | 1000     instead of 300 epochs (Figure 3)
    runlocal       the same modules and recipe on the embedded images, two steps

Published, base: soft 81.8, hard 83.0, token 83.4 (Table 3; at 384 pixels 83.2, 84.0, 84.5). Table 2 prints 83.1 and 84.2 for what
Table 3 prints 83.4 and 84.5. The released code trains no student without the token, nor fine-tunes with a teacher. Hardware as
for configs/deit.py. This code has not yet been run on ImageNet.
"""

from ml_collections import ConfigDict

from deit_jax.config import ConfigError
from deit_jax.recipes.imagenet import EPOCHS, SIZES, TEACHERS, deit, distil, fine_tune
from deit_jax.recipes.rows import Row, publish
from deit_jax.recipes.small import run_locally
from deit_jax.recipes.words import pick
from deit_jax.reporting import published

KINDS = {"soft": "soft", "hard": "hard", "token": "hard", "token_soft": "soft", "token_labels": "labels"}


def get_config(argument: str = "token,small") -> ConfigDict:
    words = pick(
        "distillation.py",
        argument,
        kind=tuple(KINDS),
        size=SIZES,
        teacher=tuple(TEACHERS),
        image_size=("384px",),
        epochs=EPOCHS,
        where=("runlocal",),
    )
    kind = words["kind"] or "token"
    config = deit(words["size"] or "small", distilled=kind.startswith("token"))
    if kind == "token_labels":
        if words["teacher"]:
            raise ConfigError(f"configs/distillation.py:{argument}: token_labels has no teacher")
        config.distillation.kind = "labels"
    else:
        distil(config, KINDS[kind], words["teacher"] or "regnety_160")
    if words["image_size"]:
        if words["epochs"]:
            raise ConfigError(
                f"configs/distillation.py:{argument}: the epochs are of the training at 224 pixels; the fine-tuning is "
                "the same for all, from that training's workdir"
            )
        fine_tune(config, 384)
    elif words["epochs"]:
        config.train.epochs = int(words["epochs"])
    publish(config, ROWS, argument)
    if words["where"] == "runlocal":
        run_locally(config)
    return config


def _teacher(word: str, at_384: bool) -> str:
    if word == "deit_base":
        return "finetune.py:384px" if at_384 else "deit.py:base"
    return f"teacher.py:{word}" + ",384px" * at_384


def _table_2() -> list[Row]:
    rows = []
    for row in published.TABLE_2:
        word = next(word for word, name in TEACHERS.items() if name == row.teacher)
        argument, what = f"token,base,{word}", f"DeiT-B distilled by {word}"
        rows += [
            Row("Table 2", argument, what, {"ImageNet": row.student_top1}, teacher=_teacher(word, False)),
            Row("Table 2", f"{argument},384px", f"{what}, at 384 pixels", {"ImageNet": row.student_384_top1},
                start=f"distillation.py:{argument}", teacher=_teacher(word, True)),
        ]  # fmt: skip
    return rows


def _table_3() -> list[Row]:
    rows = []
    labels = {"tiny": "DeiT-Ti", "small": "DeiT-S", "base": "DeiT-B", "base_384": "DeiT-B at 384 pixels"}
    for kind, token in (("soft", False), ("hard", False), ("hard", True)):
        word = "token" if token else kind
        lines = [row for row in published.TABLE_3 if (row.kind, row.token) == (kind, token)]
        for size, label in labels.items():
            student, at_384 = size.removesuffix("_384"), size.endswith("_384")
            heads = {
                f"{line.head} head" if line.head != "both" else "both heads": getattr(line, size) for line in lines
            }
            rows.append(
                Row(
                    "Table 3",
                    f"{word},{student}" + ",384px" * at_384,
                    f"{label}, {word if token else word + ' distillation'}",
                    heads if token else {"ImageNet": heads["class head"]},
                    start=f"distillation.py:{word},{student}" if at_384 else "",
                    teacher=_teacher("regnety_160", at_384),
                )
            )
    return rows


def _table_4() -> Row:
    wrong = [f"{name.removeprefix('distilled DeiT, ')} {100 * value:.1f}"
             for name, value in zip(published.TABLE_4_NAMES[3:], published.TABLE_4[0][3:], strict=True)]  # fmt: skip
    note = f"wrong on {', '.join(wrong)} % of the images"
    return Row("Table 4", "token,base", "distilled DeiT", note=note, teacher=_teacher("regnety_160", False))


def _figure_3() -> list[Row]:
    rows = []
    words = {"soft distillation": "soft", "hard distillation": "hard", "hard distillation, token": "token"}
    for curve, values in published.FIGURE_3.items():
        for epochs, value in zip(published.FIGURE_3_EPOCHS, values, strict=True):
            word = words.get(curve, "token")
            at_224 = f"{word},base" + f",{epochs}" * (epochs != 300)
            note = "" if epochs in published.FIGURE_3_EXACT[curve] else "read off the plot"
            figures = {"ImageNet": value}
            if curve in words:
                row = Row(
                    "Figure 3",
                    at_224,
                    f"{curve}, {epochs} epochs",
                    figures,
                    note,
                    teacher=_teacher("regnety_160", False),
                )
            else:
                row = Row("Figure 3", f"{word},base,384px", f"{curve}, {epochs} epochs", figures, note,
                          start=f"distillation.py:{at_224}", teacher=_teacher("regnety_160", True))  # fmt: skip
            rows.append(row)
    return rows


_SECTION_4 = [
    Row("Section 4", "token_labels,base", "two class tokens",
        note=f"no better than one; their cosine ends at {published.TWO_CLASS_TOKENS_COSINE}"),
    Row("Section 4", "token_soft,base", "token, soft distillation", note="no figure published",
        teacher=_teacher("regnety_160", False)),
]  # fmt: skip

ROWS = [*_table_2(), *_table_3(), _table_4(), *_figure_3(), *_SECTION_4]
