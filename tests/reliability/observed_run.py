"""One process of a run that records the inputs of its steps; test_elastic.py starts several."""

import dataclasses

import jax
import numpy as np

from deit_jax.modes.train import train
from deit_jax.parallel import distributed
from deit_jax.parallel.host_rows import deal_on_devices
from deit_jax.parallel.mesh import BATCH_AXES
from deit_jax.training import loop, preparation
from deit_jax.training.program import build_augmentation
from deit_jax.training.step import step_keys
from tests.tiny import STUDENT, tiny_config


def config_for(max_steps):
    config = tiny_config(
        distillation__kind="none", teacher__weights="", model__name="deit_tiny_patch16_224", data__max_eval_images=16,
        evaluation__batch_size=8, augment__rand_augment="rand-m9-mstd0.5-inc1", data__repeats=2,
        # Two blocks of 16: of four processes, two share a block, whose rows are grouped in the step.
        augment__group_size=8, augment__groups_per_block=2, evaluation__every_epochs=0, train__max_steps=max_steps,
    )  # fmt: skip
    with config.unlocked():
        config.model.overrides = STUDENT | {"depth": 1}
    return config


def observed_run(workdir, record, max_steps, *where):
    """Trains. `where`: for one of several processes, the coordinator's address, the number of processes and its own number.

    The file `record`, .npz, gets for each step and row of this process: the cropped image and label from the host, and the
    augmented image and target that the recipe makes of them on the mesh, by the key of that step.
    """
    distributed.start(*where)
    config, seen = config_for(max_steps), {}

    def observed(build):
        def build_program(config, plan, mesh, **options):
            program = build(config, plan, mesh, **options)
            recipe = build_augmentation(config, plan)
            augment = jax.jit(lambda key, images, labels: recipe(key, images, labels, mesh=mesh, axis=BATCH_AXES))
            deal = jax.jit(deal_on_devices(mesh, plan.order.group_size, plan.order.groups_per_block))
            augment, deal, step_as_built = map(distributed.compiled_together, (augment, deal, program.train_step))

            def train_step(state, teacher, batch):
                step, given = int(state.step), batch
                if not program.host_rows.dealt:
                    batch = deal(batch)
                image, target = augment(step_keys(config.seed, step)[0], batch["image"], batch["label"])
                for name, array in {**batch, "augmented": image, "target": target}.items():
                    name = "crop" if name == "image" else name
                    for shard in array.addressable_shards:
                        first = shard.index[0].start or 0
                        for row, value in enumerate(np.asarray(shard.data), first):
                            seen[f"{name}/{step}/{row}"] = value
                return step_as_built(state, teacher, given)

            return dataclasses.replace(program, train_step=train_step)

        return build_program

    preparation.build_program = observed(preparation.build_program)
    loop.compiled_together = lambda function: function  # the recorder is not a jitted function, but it calls one
    train(config, workdir)
    np.savez(record, **seen)
