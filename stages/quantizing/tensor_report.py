"""The account of one tensor in the blob: its errors, entropy and bytes."""

import numpy as np
import torch
from torch import Tensor

from schemas.quantize import ClipShare, TensorReport
from stages.core.quantizers.quantized import QuantizedTensor
from stages.core.root_mean_square import root_mean_square


def tensor_report(
    original: Tensor,
    tensor: QuantizedTensor,
    rounded: QuantizedTensor,
    compressed_bytes: int,
    divergence_nats: float | None,
) -> TensorReport:
    rms_error = root_mean_square(tensor.dequantized() - original)
    own_rms = root_mean_square(original)
    return TensorReport(
        name=tensor.name,
        shape=tuple(original.shape),
        format=tensor.format,
        num_elements=original.numel(),
        clips=_clip_shares(tensor),
        rms_error=rms_error,
        rms_error_round_to_nearest=root_mean_square(rounded.dequantized() - original),
        relative_error=rms_error / own_rms if own_rms else 0.0,
        entropy_bits=entropy_bits(tensor.values),
        stored_bytes=tensor.stored_bytes,
        compressed_bytes=compressed_bytes,
        divergence_nats=divergence_nats,
    )


def _clip_shares(tensor: QuantizedTensor) -> tuple[ClipShare, ...]:
    if tensor.clip_ratios is None:
        return ()
    ratios, counts = torch.unique(tensor.clip_ratios, return_counts=True)
    pairs = zip(ratios.tolist(), counts.tolist(), strict=True)
    # float32 ratios back to the decimals that the spec gave
    return tuple(
        ClipShare(clip_ratio=round(ratio, 6), num_rows=count) for ratio, count in sorted(pairs, reverse=True)
    )


def entropy_bits(values: Tensor) -> float:
    """Order-0 entropy in bits a value: of the codes of an integer tensor; of each byte plane, summed, of
    a floating-point one.
    """
    if values.dtype == torch.int16:
        return _entropy(np.unique(values.numpy(), return_counts=True)[1])
    planes = values.numpy().reshape(-1).view(np.uint8).reshape(values.numel(), -1).T
    return float(sum(_entropy(np.bincount(plane, minlength=256)) for plane in planes))


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return max(0.0, float(-(shares * np.log2(shares)).sum()))
