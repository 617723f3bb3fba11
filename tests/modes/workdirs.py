"""Workdirs of runs that have not taken a step: a genuine record and checkpoint, and nothing compiled but the initialisation."""

import jax

from deit_jax.data.identity import Identity
from deit_jax.data.registry import open_source
from deit_jax.parallel.mesh import make_mesh
from deit_jax.training.checkpointing import Checkpoints
from deit_jax.training.plan import resolve
from deit_jax.training.program import build_program
from deit_jax.training.record import claim_workdir


def untrained(workdir, config):
    """Write into `workdir` what a run of `config` has before its first step; returns it."""
    source = open_source(config.data, "train")
    plan = resolve(config, num_images=len(source), data_classes=len(source.class_names))
    program = build_program(config, plan, make_mesh(jax.devices()[:1]))
    claim_workdir(workdir, config, plan, Identity.of(source, open_source(config.data, "eval")))
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(program.init())
    return workdir
