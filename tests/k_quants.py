"""Rounds values to GGUF's Q4_K, Q5_K and Q6_K, which the gguf package only reads (tests)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType as GgmlType
from gguf.quants import quantize as quantize_plain

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


def quantize(values: Floats, kind: GgmlType) -> npt.NDArray[np.generic]:
    """`values` [rows, cols] as blocks [rows, bytes]; K types here, others by the gguf package."""
    if kind not in (GgmlType.Q4_K, GgmlType.Q5_K, GgmlType.Q6_K):
        return np.asarray(quantize_plain(values, kind))
    blocks = values.reshape(-1, 256)
    if kind == GgmlType.Q6_K:
        raw = _q6_k(blocks)
    else:
        raw = _with_minima(blocks, five_bits=kind == GgmlType.Q5_K)
    return raw.reshape(values.shape[0], -1)


def _half(values: Floats) -> Bytes:
    return values.astype(np.float16)[:, None].view(np.uint8)


def _steps(values: Floats, step: Floats, low: int, high: int) -> npt.NDArray[np.int64]:
    safe = np.where(step == 0, 1, step)
    return np.clip(np.rint(values / safe), low, high).astype(np.int64)


def _q6_k(blocks: Floats) -> Bytes:
    groups = blocks.reshape(-1, 16, 16)
    wanted = np.abs(groups).max(-1) / 31
    super_scale = (wanted.max(-1) / 127).astype(np.float16).astype(np.float32)
    scales = _steps(wanted, super_scale[:, None], -128, 127)
    q = _steps(groups, super_scale[:, None, None] * scales[..., None], -32, 31).astype(np.float32)
    bits = (q + 32).astype(np.uint8).reshape(-1, 2, 4, 32)  # halves of the block, groups of 32
    low = np.concatenate((bits[:, :, 0:2] & 15, bits[:, :, 2:4] & 15), 2)
    low = low[:, :, 0:2] | low[:, :, 2:4] << 4
    high = bits >> 4
    high = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    parts = low.reshape(-1, 128), high.reshape(-1, 64), scales.astype(np.int8).view(np.uint8)
    return np.concatenate((*parts, _half(super_scale)), 1)


def _with_minima(blocks: Floats, *, five_bits: bool) -> Bytes:
    groups = blocks.reshape(-1, 8, 32)
    top = 31 if five_bits else 15
    least = np.minimum(groups.min(-1), 0)
    wanted = (groups.max(-1) - least) / top
    super_scale = (wanted.max(-1) / 63).astype(np.float16).astype(np.float32)
    super_min = ((-least).max(-1) / 63).astype(np.float16).astype(np.float32)
    scales = _steps(wanted, super_scale[:, None], 0, 63).astype(np.uint8)
    minima = _steps(-least, super_min[:, None], 0, 63).astype(np.uint8)
    offset = (super_min[:, None] * minima)[..., None]
    q = _steps(groups + offset, (super_scale[:, None] * scales)[..., None], 0, top).astype(np.uint8)
    packed = np.concatenate(
        (
            scales[:, :4] | scales[:, 4:] >> 4 << 6,
            minima[:, :4] | minima[:, 4:] >> 4 << 6,
            scales[:, 4:] & 15 | minima[:, 4:] << 4,
        ),
        1,
    )
    fifth = np.packbits((q >> 4).swapaxes(1, 2), -1, bitorder="little")[..., 0]
    halves = ((q[:, 0::2] & 15) | (q[:, 1::2] & 15) << 4).reshape(-1, 128)
    parts = [_half(super_scale), _half(super_min), packed, halves]
    if five_bits:
        parts.insert(3, fifth)
    return np.concatenate(parts, 1)
