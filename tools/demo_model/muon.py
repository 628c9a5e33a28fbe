"""Muon: momentum whose matrices are orthogonalized before they are applied.

After Keller Jordan's description (2024): a few Newton-Schulz steps give U V^T of the momentum's
singular value decomposition. At this size it learns in far fewer tokens than AdamW.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315  # quintic with a steep slope at 0


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return about U V^T of each matrix, [count, rows, columns]."""
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """For matrices; `parts` of a fused one, along its rows, are orthogonalized by themselves."""

    def __init__(
        self,
        matrices: Iterable[tuple[Tensor, tuple[int, ...]]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        pairs = list(matrices)
        self._parts = [parts for _, parts in pairs]
        defaults: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([tensor for tensor, _ in pairs], defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        (group,) = self.param_groups
        shapes: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for weight, parts in zip(group["params"], self._parts, strict=True):
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
            update = weight.grad.lerp(state["momentum"], group["momentum"])
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            for part, change in zip(weight.split(parts), update.split(parts), strict=True):
                shapes[tuple(part.shape)].append((part, change))  # type: ignore[index]
        for (rows, columns), pairs in shapes.items():
            scale = max(1.0, rows / columns) ** 0.5
            found = orthogonalize(torch.stack([change for _, change in pairs]))
            for (part, _), change in zip(pairs, found, strict=True):
                part.add_(change, alpha=-group["lr"] * scale)
