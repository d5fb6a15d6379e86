"""Fake quantization for late QAT, by the grid's name: what the quantizer of that name would make of the
present weights.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from schemas.qat_settings import QatSettings
from stages.core.quantizers.gptq_lite import fake_gptq_lite
from stages.core.quantizers.grid import fake_quantize
from stages.core.quantizers.reference import fake_reference

FakeQuantizer = Callable[[Tensor, int], Tensor]
"""Matrices (N, R, C) float32 and their bits -> the same as they would come back from the blob, without
gradient.
"""


def fake_quantizer(settings: QatSettings) -> tuple[str, FakeQuantizer]:
    """The grid's name, and its fake quantizer: for the same weights its values are bit for bit those that
    the quantizer stores.
    """
    match settings.grid:
        case "gptq_lite":
            return settings.grid, partial(fake_gptq_lite, candidates=settings.clip_candidates)
        case "reference":
            return settings.grid, fake_reference
        case _:
            return "round_to_nearest", fake_quantize
