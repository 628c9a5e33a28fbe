"""RoPE frequencies as checkpoints describe them: plain, linearly scaled, or Llama 3's scaling."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .fields import Fields, show

_DEFAULT_THETA = {"lfm2": 1_000_000.0, "llama": 10_000.0}


@np.errstate(all="ignore")  # what overflows is reported by the caller, as not finite
def from_hf(
    fields: Fields, architecture: str, head_dim: int, max_positions: int
) -> npt.NDArray[np.float32]:
    """Inverse frequencies, float32 [head_dim / 2], of a config.json; ValueError: unsupported."""
    # rope_scaling is the older name of rope_parameters, and wins in transformers if not empty.
    rope = Fields(
        fields.mapping("rope_scaling") or fields.mapping("rope_parameters"),
        f"{fields.source}: RoPE",
    )
    if any(isinstance(value, dict) for value in rope.values()):
        raise fields.error("RoPE parameters that differ between layers are not supported")
    if rope.find("rope_theta")[1] is not None:
        theta = rope.number("rope_theta")
    else:
        theta = fields.number("rope_theta", "theta", default=_DEFAULT_THETA[architecture])
    for where in (rope, fields):
        if where.number("partial_rotary_factor", default=1.0) != 1.0:
            raise fields.error("partial RoPE (partial_rotary_factor) is not supported")
    kind = rope.find("rope_type", "type")[1] or "default"
    inv_freq = inverse_frequencies(theta, head_dim)
    if kind == "default":
        return inv_freq
    if kind == "linear":
        return inv_freq / np.float32(rope.number("factor"))
    if kind == "llama3":
        old_length = fields.find("original_max_position_embeddings")[1]
        return _llama3_scaled(
            inv_freq,
            factor=rope.number("factor"),
            low=rope.number("low_freq_factor"),
            high=rope.number("high_freq_factor"),
            old_length=fields.positive("original_max_position_embeddings", old_length)
            if old_length is not None
            else rope.number("original_max_position_embeddings", default=float(max_positions)),
        )
    raise fields.error(f"RoPE type {show(kind)} is not supported (default, linear, llama3)")


@np.errstate(all="ignore")
def from_gguf(
    fields: Fields, head_dim: int, factors: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.float32]:
    """Inverse frequencies of GGUF metadata; `factors`: rope_freqs.weight, if there is one."""
    inv_freq = inverse_frequencies(fields.number("rope.freq_base", default=10_000.0), head_dim)
    kind = fields.find("rope.scaling.type")[1]
    if kind not in (None, "none", "linear"):
        raise fields.error(f"RoPE scaling {show(kind)} is not supported (none, linear)")
    if kind != "none" and fields.find("rope.scaling.factor", "rope.scale_linear")[1]:
        factor = fields.number("rope.scaling.factor", "rope.scale_linear")
        inv_freq = inv_freq / np.float32(factor)
    if factors is not None:
        if factors.shape != inv_freq.shape:
            raise fields.error(
                f"rope_freqs.weight has {factors.size} factors, the head size needs {inv_freq.size}"
            )
        if not (factors > 0).all():
            raise fields.error("rope_freqs.weight must hold positive factors")
        inv_freq = inv_freq / factors
    return inv_freq


def inverse_frequencies(theta: float, head_dim: int) -> npt.NDArray[np.float32]:
    """RoPE's 1 / theta^(2i / head_dim), float32 [head_dim / 2], as torch computes it.

    The power is rounded once from float64: that is torch's own result bit for bit (its vectorised
    float32 pow differs now and then in the last place), which NumPy's float32 pow is not.
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    power = np.power(np.float64(np.float32(theta)), exponent.astype(np.float64))
    return np.float32(1.0) / power.astype(np.float32)


def _llama3_scaled(
    inv_freq: npt.NDArray[np.float32], *, factor: float, low: float, high: float, old_length: float
) -> npt.NDArray[np.float32]:
    """Llama 3's RoPE scaling: long wavelengths divided by `factor`, a smooth passage between.

    Float32 throughout, in the order in which transformers computes it.
    """
    f32 = np.float32
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        wavelength = f32(2 * math.pi) / inv_freq
        scaled = np.where(wavelength > f32(old_length / low), inv_freq / f32(factor), inv_freq)
        smooth = (f32(old_length) / wavelength - f32(low)) / f32(high - low)
        blended = (f32(1) - smooth) * scaled / f32(factor) + smooth * scaled
        medium = ~(wavelength < f32(old_length / high)) & ~(wavelength > f32(old_length / low))
    return np.where(medium, blended, scaled).astype(np.float32)
