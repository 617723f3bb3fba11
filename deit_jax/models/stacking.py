"""The two layouts of a transformer's parameters: a subtree for each block, or all blocks stacked (`scan_blocks`)."""

from __future__ import annotations

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

_BLOCK = re.compile(r"blocks_(\d+)")


def stack_blocks(params: dict[str, Any]) -> dict[str, Any]:
    """blocks_0/..., blocks_1/... to blocks/..., a new first axis counting the blocks. Nothing is lost; others are kept."""
    blocks = {int(match[1]): tree for name, tree in params.items() if (match := _BLOCK.fullmatch(name))}
    rest = {name: tree for name, tree in params.items() if not _BLOCK.fullmatch(name)}
    if not blocks:
        return rest
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(blocks[i] for i in range(len(blocks))))
    return rest | {"blocks": stacked}


def unstack_blocks(params: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `stack_blocks`."""
    if "blocks" not in params:
        return dict(params)
    rest = {name: tree for name, tree in params.items() if name != "blocks"}
    depth = jax.tree.leaves(params["blocks"])[0].shape[0]
    return rest | {f"blocks_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]) for i in range(depth)}


def laid_out_for(model: nn.Module, params: dict[str, Any]) -> dict[str, Any]:
    """Parameters with a subtree for each block as the model keeps them: stacked if it scans its blocks."""
    return stack_blocks(params) if getattr(model, "scan_blocks", False) else params
