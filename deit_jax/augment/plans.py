"""Two plans to apply drawn operations to a batch: `sequential` for a CPU, `chunked` for a TPU or a GPU.

They agree to within one grey level for each operation, and so do they with Pillow.
"""

from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from deit_jax.augment.chunked import apply_in_chunks
from deit_jax.augment.sequential import apply_sequentially

PLANS = ("sequential", "chunked")
CHOICES = ("auto", *PLANS)  # of the configuration: auto is decided by the devices


def choose_plan(plan: str, mesh: Mesh | None = None) -> str:
    """`plan` itself, or for "auto" the plan of the platform that the mesh, or else the default device, is on."""
    if plan != "auto":
        return plan
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return "sequential" if platform == "cpu" else "chunked"


def apply_operations(
    images: jax.Array,
    operations: jax.Array,
    arguments: jax.Array,
    fill: Sequence[int] = (124, 116, 104),
    plan: str = "auto",
) -> jax.Array:
    """Applies one operation after another to each image.

    Args:
        images: uint8[B, H, W, 3].
        operations: int32[B, L], numbers of OPERATIONS, or SKIP.
        arguments: float32[B, L], see `operations.level_to_argument`.
        fill: RGB grey levels of the pixels that geometric operations uncover.
        plan: "sequential", "chunked", or "auto": by the default device.

    Returns:
        uint8[B, H, W, 3].

    Raises:
        ValueError: unknown plan.
    """
    plan = choose_plan(plan)
    if plan not in PLANS:
        raise ValueError(f"plan {plan!r} is none of auto, {', '.join(PLANS)}")
    apply = apply_sequentially if plan == "sequential" else apply_in_chunks
    return apply(images, operations, arguments, fill)
