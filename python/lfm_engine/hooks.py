"""Hooks: see and change activations at named points of a forward pass."""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core

__all__ = ["Hook", "Hooks", "Record"]

Activation = npt.NDArray[np.float32]
HookFunction = Callable[[Activation, _core.HookSite], Any]


def _fits(point: str, pattern: str) -> bool:
    """Whether each part fits: "layers.*.output" is no pattern for "layers.0.mlp.output"."""
    parts, wanted = point.split("."), pattern.split(".")
    return pattern == "*" or (
        len(parts) == len(wanted)
        and all(fnmatch.fnmatchcase(a, b) for a, b in zip(parts, wanted, strict=True))
    )


class Hook:
    """A function at some points, until `remove()` or the end of its `with` block."""

    def __init__(self, hooks: Hooks, points: list[str], function: HookFunction) -> None:
        self._hooks = hooks
        self.points = points
        self.function = function

    def remove(self) -> None:
        """End it, from the next forward pass on. A second call does nothing."""
        self._hooks._remove(self)

    def __enter__(self) -> Hook:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


class Record(Hook, Mapping[str, Activation]):
    """Activations of the passes that ran while it was active, by point.

        with model.hooks.record("layers.*.output") as record:
            model(ids)
        record["layers.0.output"]  # float32 [tokens, hidden]

    A prompt is computed in passes of 256 tokens at most, and each new token is a pass. The array of
    a single pass is the engine's memory itself; those of several passes are joined, along the axis
    of the tokens, into a copy. `passes` has them one by one.
    """

    def __init__(self, hooks: Hooks, points: list[str]) -> None:
        super().__init__(hooks, points, self._keep)
        self._arrays: dict[str, list[Activation]] = {}

    def __enter__(self) -> Record:
        return self

    def _keep(self, array: Activation, site: _core.HookSite) -> None:
        self._arrays.setdefault(site.name, []).append(array)

    def passes(self, point: str) -> list[Activation]:
        """The arrays of a point, one for each pass (`attention.probs`: and sequence)."""
        return list(self._arrays[point])

    def __getitem__(self, point: str) -> Activation:
        arrays = self._arrays[point]
        if len(arrays) == 1:
            return arrays[0]
        if not point.endswith(".attention.probs"):
            return np.concatenate(arrays)
        # Each pass sees more positions than the one before.
        keys = max(array.shape[2] for array in arrays)
        joined = np.zeros((arrays[0].shape[0], sum(a.shape[1] for a in arrays), keys), np.float32)
        row = 0
        for array in arrays:
            joined[:, row : row + array.shape[1], : array.shape[2]] = array
            row += array.shape[1]
        return joined

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def clear(self) -> None:
        """Forget what was recorded."""
        self._arrays.clear()


class Hooks:
    """Hooks of a model, as `model.hooks`.

        def ablate(x, site):        # x: float32 [tokens, hidden], the engine's own memory
            x[:] = 0
        with model.hooks.add("layers.3.mlp.output", ablate):
            model.generate(ids)

    A hook sees an activation before it is used and may change it in place, or return an array that
    takes its place. What it keeps stays as it is, but for what later hooks at this point do: the
    engine goes on in other memory. Hooks that change nothing change no bit of the result.

    They see every pass of this model, in every thread, that begins while they are there; `generate`
    then drafts nothing and leaves the prefix cache alone, whose keys and values are of the model as
    it is. (So do not add hooks that change something while another thread generates.) An exception
    in a hook ends the pass, with states as they were before it, and goes to the caller. A hook must
    not use the state that is being advanced.

    The points; T are the tokens of a pass, and `site.positions` and `site.sequences` say which:

    ===========================  =================================  =============================
    layers.N.input               [T, hidden]                        the stream before a layer
    layers.N.operator_norm       [T, hidden]                        what its first block gets
    layers.N.conv.in_proj        [T, 3, hidden]                     B, C and x
    layers.N.conv.input          [T, hidden]                        B * x, also the conv state
    layers.N.conv.gated          [T, hidden]                        C * conv(B * x)
    layers.N.conv.output         [T, hidden]                        added to the stream
    layers.N.attention.qkv_proj  [T, heads + 2 kv_heads, head_dim]  not yet normed, rotated
    layers.N.attention.q         [T, heads, head_dim]               rotated, / sqrt(head_dim)
    layers.N.attention.k         [T, kv_heads, head_dim]            rotated, not yet stored
    layers.N.attention.v         [T, kv_heads, head_dim]            not yet stored
    layers.N.attention.probs     [heads, tokens, positions]         per sequence; read-only
    layers.N.attention.heads     [T, heads, head_dim]               weighted sums of values
    layers.N.attention.output    [T, hidden]                        added to the stream
    layers.N.middle              [T, hidden]                        the stream between the blocks
    layers.N.ffn_norm            [T, hidden]                        what the MLP gets
    layers.N.mlp.gated           [T, intermediate]                  silu(w1 x) * w3 x
    layers.N.mlp.output          [T, hidden]                        added to the stream
    layers.N.output              [T, hidden]                        the stream after a layer
    norm                         [T, hidden]                        after the last norm
    logits                       [rows, vocab_size]                 those that were asked for
    ===========================  =================================  =============================

    Attention weights never exist in the engine, which goes through keys block by block. At `probs`
    they are computed apart, from the same queries and stored keys: change `q`, `k`, `v` or `heads`
    instead. After a rewind the last tokens run once more (`conv_L_cache - 1` for each conv layer),
    and hooks see them again; their keys and values stay as they were stored.
    """

    def __init__(self, core: _core.Model) -> None:
        self._core = core
        self._active: tuple[Hook, ...] = ()
        self._lock = threading.Lock()

    @property
    def points(self) -> list[str]:
        """All points of this model, in the order in which a pass comes by."""
        return list(self._core.tap_names())

    @property
    def names(self) -> list[str]:
        """The points that have hooks."""
        return sorted({point for hook in self._active for point in hook.points})

    def __len__(self) -> int:
        return len(self._active)

    def add(self, points: str | list[str], function: HookFunction) -> Hook:
        """Call function(array, site) at these points, after hooks that were added before.

        Args:
            points: a point, a pattern ("layers.*.output", "layers.[02].conv.*": stars stay between
                dots; "*": all points), or a list.
            function: gets the activation, and a `HookSite`: `.name`, `.layer`, and of each row
                `.positions` and `.sequences`. It returns None, or an array of the same shape.

        Returns:
            A `Hook`, for its `remove()` or `with`.

        Raises:
            ValueError: a pattern that fits no point of this model.
        """
        return self._add(Hook(self, self._expand(points), function))

    def record(self, *points: str) -> Record:
        """Keep the activations at these points, until the `with` block ends or `remove()`.

        They are what the model goes on with, after all other hooks.
        """
        record = Record(self, self._expand(list(points)))
        self._add(record)
        return record

    def clear(self) -> None:
        """Remove all hooks."""
        with self._lock:
            self._set(())

    def visit(self, array: Activation, site: _core.HookSite) -> None:
        """Called by the engine at each of `names`."""
        name = site.name
        for hook in self._active:
            if name not in hook.points:
                continue
            new = hook.function(array, site)
            if new is None or new is array:
                continue
            if np.shape(new) != array.shape:
                raise ValueError(
                    f"hook at {name}: it returned the shape {np.shape(new)}, not {array.shape}"
                )
            if not array.flags.writeable:
                raise ValueError(f"hook at {name}: this activation cannot be changed")
            array[...] = new

    def _expand(self, patterns: str | list[str]) -> list[str]:
        points = self.points
        found: list[str] = []
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            matches = [point for point in points if _fits(point, pattern)]
            if not matches:
                raise ValueError(f"no point of this model matches '{pattern}'; see hooks.points")
            found += [point for point in matches if point not in found]
        return found

    def _add(self, hook: Hook) -> Hook:
        with self._lock:
            self._set((*self._active, hook))
        return hook

    def _remove(self, hook: Hook) -> None:
        with self._lock:
            self._set(tuple(other for other in self._active if other is not hook))

    def _set(self, active: tuple[Hook, ...]) -> None:
        # Records see what the others leave: what the model goes on with.
        self._active = tuple(sorted(active, key=lambda hook: isinstance(hook, Record)))
        self._core.set_taps(self if active else None)


class Capture:
    """What `model(..., output_hidden_states=, output_attentions=)` writes while it runs.

    Attributes:
        hidden_states: as in transformers: float32 [batch, sequence, hidden] before each layer, and
            at last after the final norm; None unless asked for.
        attentions: of each attention layer float32 [batch, heads, sequence, sequence]; None unless
            asked for.
    """

    def __init__(
        self, core: _core.Model, batch: int, length: int, hidden: bool, attentions: bool
    ) -> None:
        self._arrays: dict[str, Activation] = {}
        self._row = self._start = 0
        points = core.tap_names()
        streams = [p for p in points if p.endswith(".input") and not p.endswith("conv.input")]
        probs = [p for p in points if p.endswith(".attention.probs")]
        self._streams = [*streams, "norm"] if hidden else []
        self._probs = probs if attentions else []
        self._shape = (batch, length)

    @property
    def names(self) -> list[str]:
        """The points that it wants to see."""
        return [*self._streams, *self._probs]

    def begin(self, row: int, start: int) -> Capture | None:
        """What comes belongs to this row of the batch, whose padding ends at `start`."""
        self._row, self._start = row, start
        return self if self.names else None

    def visit(self, array: Activation, site: _core.HookSite) -> None:
        """Called by the engine at each of `names`."""
        batch, length = self._shape
        first = self._start + int(site.positions[0])
        if site.name in self._probs:
            heads, count, keys = array.shape
            shape: tuple[int, ...] = (batch, heads, length, length)
            out = self._arrays.setdefault(site.name, np.zeros(shape, np.float32))
            end = self._start + keys
            out[self._row, :, first : first + count, self._start : end] = array
            return
        shape = (batch, length, array.shape[1])
        out = self._arrays.setdefault(site.name, np.zeros(shape, np.float32))
        out[self._row, first : first + array.shape[0]] = array

    @property
    def hidden_states(self) -> tuple[Activation, ...] | None:
        return tuple(self._arrays[name] for name in self._streams) if self._streams else None

    @property
    def attentions(self) -> tuple[Activation, ...] | None:
        return tuple(self._arrays[name] for name in self._probs) if self._probs else None
