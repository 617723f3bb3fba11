"""Workdirs of runs at step 0, with a real record and checkpoint, for which only the initialisation is compiled."""

import jax

from deit_jax.data.identity import Identity
from deit_jax.data.registry import open_source
from deit_jax.parallel.mesh import make_mesh
from deit_jax.training.checkpointing import Checkpoints
from deit_jax.training.plan import resolve
from deit_jax.training.program import build_program
from deit_jax.training.record import claim_workdir


def untrained(workdir, config):
    """Writes the files of a run of `config` before its first step into `workdir`; returns it."""
    source = open_source(config.data, "train")
    plan = resolve(config, num_images=len(source), data_classes=len(source.class_names))
    program = build_program(config, plan, make_mesh(jax.devices()[:1]))
    claim_workdir(workdir, config, plan, Identity.of(source, open_source(config.data, "eval")))
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(program.init())
    return workdir
