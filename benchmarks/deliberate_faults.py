"""The faults that faults_in_code.py puts into the package, one at a time: plausible mistakes that do not raise an error."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Fault:
    """A change of one file that should make a test fail.

    name: for the command line. file: relative to the root. old: text that occurs exactly once in it; new: its replacement.
    tests: files or folders of the tests that mirror the module, which run first.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def problem(self, root: Path) -> str:
        """Returns why this fault does not apply to the code under `root`, in one line; "" if it does."""
        path = root / self.file
        if not path.is_file():
            return f"{self.name}: there is no {self.file}"
        if (count := path.read_text().count(self.old)) != 1:
            return f"{self.name}: {self.old!r} occurs {count} times in {self.file}, not once"
        missing = [test for test in self.tests if not (root / test).exists()]
        return f"{self.name}: there is no {missing[0]}" if missing else ""

    def applied(self, text: str) -> str:
        """Returns the text of the file with the fault."""
        return text.replace(self.old, self.new)


_LOSSES = ("tests/training/test_losses.py",)
_SAMPLING = ("tests/data/test_sampling.py",)
_LOADING = ("tests/data/test_loading.py",)
_MIXING = ("tests/augment/test_mixing.py",)
_DRAWS = ("tests/augment/test_draws.py",)
_SCHEDULES = ("tests/training/test_schedules.py",)
_EMA = ("tests/training/test_ema.py",)
_PROGRAM = ("tests/training/test_program.py",)
_OPTIMIZER = ("tests/training/test_optimizer.py",)
_LOOP = ("tests/training/test_loop.py",)
_RESUMED = ("tests/reliability/test_earlier_version.py", "tests/end_to_end/test_run.py")
_WEIGHTS = ("tests/weights/test_loading.py",)

FAULTS = (
    # Losses.
    Fault(
        "kl-without-temperature",
        "deit_jax/training/losses.py",
        "return tau**2 * jnp.mean(terms)",
        "return jnp.mean(terms)",
        _LOSSES,
    ),
    Fault(
        "kl-other-direction",
        "deit_jax/training/losses.py",
        "terms = jnp.exp(teacher) * (teacher - student)",
        "terms = jnp.exp(student) * (student - teacher)",
        _LOSSES,
    ),
    Fault(
        "hard-decision-of-the-student",
        "deit_jax/training/losses.py",
        "decision = decisions(teacher_logits)",
        "decision = decisions(logits)",
        _LOSSES,
    ),
    Fault(
        "teacher-teaches-the-class-head",
        "deit_jax/training/losses.py",
        "student = outputs.class_logits if outputs.distillation_logits is None else outputs.distillation_logits",
        "student = outputs.class_logits",
        _LOSSES,
    ),
    Fault(
        "alpha-of-the-other-term",
        "deit_jax/training/losses.py",
        "loss = (1 - self.alpha) * class_loss + self.alpha * distillation_loss",
        "loss = self.alpha * class_loss + (1 - self.alpha) * distillation_loss",
        _LOSSES,
    ),
    Fault(
        "label-smoothing-over-one-class-less",
        "deit_jax/augment/mixing.py",
        "off = smoothing / num_classes",
        "off = smoothing / (num_classes - 1)",
        _MIXING,
    ),
    # Order of the images.
    Fault(
        "copies-far-apart",
        "deit_jax/data/sampling.py",
        "image, copy = np.divmod(entry, self.repeats)",
        "copy, image = np.divmod(entry, self.num_examples // self.repeats)",
        _SAMPLING,
    ),
    Fault(
        "copies-in-one-mixing-group",
        "deit_jax/data/sampling.py",
        "row = block * self.block_size + group * self.group_size + turn",
        "row = block * self.block_size + in_block",
        _SAMPLING,
    ),
    Fault(
        "every-epoch-in-one-order",
        "deit_jax/data/sampling.py",
        "np.random.default_rng((stream, seed, epoch))",
        "np.random.default_rng((stream, seed))",
        _SAMPLING,
    ),
    Fault(
        "every-host-reads-the-first-shard",
        "deit_jax/data/sampling.py",
        "chunks += [Chunk(start, stop, first, last, before - first) for start, stop in itertools.pairwise(edges)]",
        "chunks += [Chunk(start - first, stop - first, 0, last - first, before) for start, stop in itertools.pairwise(edges)]",
        _LOADING,
    ),
    # Augmentation.
    Fault(
        "cutmix-keeps-the-drawn-lambda",
        "deit_jax/augment/mixing.py",
        "return Mix(jnp.where(cutmix, lam_of_box, lam), cutmix,",
        "return Mix(lam, cutmix,",
        _MIXING,
    ),
    Fault(
        "targets-mixed-the-other-way",
        "deit_jax/augment/mixing.py",
        "return _with_mirror(targets, mix.lam[:, None], group_size)",
        "return _with_mirror(targets, 1 - mix.lam[:, None], group_size)",
        _MIXING,
    ),
    Fault(
        "partner-is-the-neighbour",
        "deit_jax/augment/mixing.py",
        'mirrored = rearrange(rearrange(rows, "(g n) ... -> g n ...", n=group_size)[:, ::-1], "g n ... -> (g n) ...")',
        "mirrored = rearrange(\n"
        '        jnp.roll(rearrange(rows, "(g n) ... -> g n ...", n=group_size), 1, axis=1), "g n ... -> (g n) ..."\n'
        "    )",
        _MIXING,
    ),
    Fault(
        "sign-drawn-with-the-operation",
        "deit_jax/augment/randaugment.py",
        "argument = level_to_argument(operation, level, sign < 0.5, self.increasing)",
        "argument = level_to_argument(operation, level, choice < 0.5, self.increasing)",
        _DRAWS,
    ),
    Fault(
        "one-key-for-all-steps",
        "deit_jax/training/step.py",
        "jax.random.split(jax.random.fold_in(jax.random.key(seed), step))",
        "jax.random.split(jax.random.key(seed))",
        ("tests/training/test_randomness.py",),
    ),
    # The learning rate.
    Fault(
        "warm-up-from-zero",
        "deit_jax/training/schedules.py",
        "rising = warmup + epoch * (peak - warmup)",
        "rising = epoch * peak",
        _SCHEDULES,
    ),
    Fault(
        "cosine-starts-after-the-warm-up",
        "deit_jax/training/schedules.py",
        "np.minimum(epoch / epochs, 1.0)",
        "np.minimum((epoch - warmup_epochs) / (epochs - warmup_epochs), 1.0)",
        _SCHEDULES,
    ),
    Fault(
        "rate-changes-a-step-early",
        "deit_jax/training/schedules.py",
        "else jnp.asarray(step) // steps_per_epoch",
        "else (jnp.asarray(step) + 1) // steps_per_epoch",
        _SCHEDULES,
    ),
    Fault(
        "rate-by-epoch-where-by-step-is-asked",
        "deit_jax/training/program.py",
        "per_step=config.schedule.per_step,",
        "per_step=False,",
        _PROGRAM,
    ),
    # Moving average.
    Fault(
        "ema-decay-swapped",
        "deit_jax/training/step.py",
        "optax.incremental_update(now, ema, 1.0 - training.ema_decay)",
        "optax.incremental_update(now, ema, training.ema_decay)",
        _EMA,
    ),
    Fault(
        "ema-of-the-weights-before-the-step",
        "deit_jax/training/step.py",
        'moving_average(training, ema, {"params": params, "batch_stats": batch_stats})',
        'moving_average(training, ema, {"params": state.params, "batch_stats": batch_stats})',
        _EMA,
    ),
    Fault(
        "ema-starts-at-zero",
        "deit_jax/training/state.py",
        "ema=jax.tree.map(jnp.copy,",
        "ema=jax.tree.map(jnp.zeros_like,",
        _EMA,
    ),
    # Resuming.
    Fault(
        "resumed-data-a-step-behind",
        "deit_jax/data/loading.py",
        "step += self.start_step",
        "step += max(self.start_step - 1, 0)",
        _LOADING,
    ),
    Fault(
        "resumed-without-optimizer-state",
        "deit_jax/training/loop.py",
        "state = checkpoints.restore(program.abstract_state)",
        "state = checkpoints.restore(program.abstract_state).replace(opt_state=program.init().opt_state)",
        _RESUMED,
    ),
    Fault(
        "resumed-without-ema",
        "deit_jax/training/loop.py",
        "state = checkpoints.restore(program.abstract_state)",
        "state = checkpoints.restore(program.abstract_state)\n"
        "    state = state.replace(ema=jax.tree.map(lambda leaf: leaf.copy(), state.variables))",
        _RESUMED,
    ),
    # Order of the steps.
    Fault(
        "saved-before-the-rows-are-synced",
        "deit_jax/training/loop.py",
        "        run.log.sync()  # rule 2\n",
        "",
        _LOOP,
    ),
    Fault(
        "late-row-after-the-checkpoint",
        "deit_jax/training/late_metrics.py",
        "        self._pace.pause()\n        self._read_due()\n",
        "        self._pace.pause()\n",
        _LOOP,
    ),
    Fault(
        "saved-without-being-judged",
        "deit_jax/training/late_metrics.py",
        "        self._watch.read(through=step)\n",
        "",
        _LOOP,
    ),
    Fault(
        "stopped-before-the-save-is-complete",
        "deit_jax/training/loop.py",
        "        run.checkpoints.wait()  # rule 4\n        raise",
        "        raise",
        _LOOP,
    ),
    # The optimizer.
    Fault(
        "decay-on-biases-and-norms",
        "deit_jax/training/optimizer.py",
        "optax.add_decayed_weights(weight_decay, mask)",
        "optax.add_decayed_weights(weight_decay)",
        _OPTIMIZER,
    ),
    Fault(
        "decay-inside-the-moments",
        "deit_jax/training/optimizer.py",
        "rules = [optax.scale_by_adam(b1=betas[0], b2=betas[1], eps=eps), decay]",
        "rules = [decay, optax.scale_by_adam(b1=betas[0], b2=betas[1], eps=eps)]",
        _OPTIMIZER,
    ),
    # Foreign weights.
    Fault(
        "square-kernels-not-transposed",
        "deit_jax/weights/timm.py",
        'if name.endswith(".weight") and tensor.ndim > 1:',
        'if name.endswith(".weight") and tensor.ndim > 1 and tensor.shape[0] != tensor.shape[1]:',
        _WEIGHTS,
    ),
    Fault(
        "key-before-query",
        "deit_jax/weights/huggingface.py",
        '_PARTS = ("q", "k", "v")',
        '_PARTS = ("k", "q", "v")',
        _WEIGHTS,
    ),
    Fault(
        "class-and-distillation-token-swapped",
        "deit_jax/weights/huggingface.py",
        '("cls_token", "embeddings.cls_token"),\n    ("dist_token", "embeddings.distillation_token"),',
        '("cls_token", "embeddings.distillation_token"),\n    ("dist_token", "embeddings.cls_token"),',
        _WEIGHTS,
    ),
    # Models.
    Fault(
        "position-embedding-transposed",
        "deit_jax/models/vit_parameters.py",
        'rearrange(patches, "h w d -> 1 (h w) d")',
        'rearrange(patches, "h w d -> 1 (w h) d")',
        ("tests/models/test_vit_parameters.py",),
    ),
    Fault(
        "heads-swapped",
        "deit_jax/models/vit.py",
        "self.fusion), class_logits, distillation_logits)",
        "self.fusion), distillation_logits, class_logits)",
        ("tests/models/test_vit.py",),
    ),
    Fault(
        "kernel-gradient-of-queries-unscaled",
        "deit_jax/models/pallas_attention.py",
        "(of_q * shape.head_dim**-0.5, of_k, of_v)",
        "(of_q, of_k, of_v)",
        ("tests/models/test_pallas_attention.py",),
    ),
    Fault(
        "kernel-uses-the-last-head-for-all",
        "deit_jax/models/pallas_attention.py",
        "return of_head if others is None else jnp.where(keep, of_head, others)",
        "return of_head",
        ("tests/models/test_pallas_attention.py",),
    ),
    Fault(
        "layer-norm-epsilon-of-pytorch",
        "deit_jax/models/layers.py",
        "EPSILON = 1e-6",
        "EPSILON = 1e-5",
        ("tests/models/test_layers.py", "tests/models/test_vit.py"),
    ),
    Fault(
        "gelu-by-tanh",
        "deit_jax/models/layers.py",
        "return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)",
        "return jax.nn.gelu(wide, approximate=True).astype(x.dtype)",
        ("tests/models/test_layers.py",),
    ),
    Fault(
        "drop-path-without-scale",
        "deit_jax/models/layers.py",
        "(x.astype(dtype) / jnp.asarray(keep, dtype)).astype(x.dtype)",
        "x",
        ("tests/models/test_layers.py",),
    ),
    Fault(
        "drop-path-by-a-rounded-probability",
        "deit_jax/models/layers.py",
        'dtype = x.dtype if self.division == "compute" else jnp.promote_types(x.dtype, jnp.float32)',
        "dtype = x.dtype",
        ("tests/models/test_layers.py",),
    ),
    Fault(
        "missing-field-recorded-as-its-default",
        "deit_jax/training/record.py",
        "for name in [] if checked is None else _not_recorded(",
        "for name in [] if True else _not_recorded(",
        ("tests/training/test_record.py",),
    ),
    Fault(
        "resumed-with-todays-numerics",
        "deit_jax/training/preparation.py",
        "config = as_begun(config, record)",
        "as_begun(config, record)",
        ("tests/training/test_preparation.py",),
    ),
    # Code and data from outside of the package.
    Fault(
        "plugin-in-a-workdir-is-run",
        "deit_jax/plugins.py",
        "if Path(resolve(origin)).is_relative_to(resolve(folder)):",
        "if False:",
        ("tests/test_plugins.py",),
    ),
    Fault(
        "workers-without-plugins",
        "deit_jax/plugins.py",
        "return _import_pickled, (tuple(_imported),)",
        "return _import_pickled, ((),)",
        ("tests/test_plugins.py",),
    ),
    Fault(
        "own-loss-at-its-defaults",
        "deit_jax/config_losses.py",
        "type(default)(given.get(name, default))",
        "default",
        ("tests/test_config_losses.py",),
    ),
    Fault(
        "whole-split-instead-of-its-part",
        "deit_jax/data/registry.py",
        "return source if kind.takes_parts else _part(source, _expression(data, split))",
        "return source",
        ("tests/data/test_own_source.py",),
    ),
    Fault(
        "drop-path-rate-not-passed-on",
        "deit_jax/config_model.py",
        "if each.of_model)",
        'if each.of_model and name != "model.drop_path_rate")',
        _PROGRAM,
    ),
    Fault(
        "batch-norm-epsilon-of-keras",
        "deit_jax/models/regnet.py",
        "BATCH_NORM_EPSILON = 1e-5",
        "BATCH_NORM_EPSILON = 1e-3",
        ("tests/models/test_regnet.py",),
    ),
)
