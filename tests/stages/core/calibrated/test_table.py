"""Every quantizer that the settings offer can be carried out."""

from typing import get_args

import pytest
import torch

from schemas.quantizer_settings import AnyQuantizer, CalibratedSettings, Ecsq, Gptq, GptqLite
from schemas.tokenize_corpus import TokenizedCorpus
from stages.core.calibrated.table import QUANTIZERS, TextQuantizer
from stages.core.calibrated.whole_model import quantize_state
from stages.core.calibrated.with_text import quantize_with_text


def test_every_type_of_settings_has_a_quantizer_and_those_with_calibration_one_that_reads_text() -> None:
    assert set(QUANTIZERS) == set(get_args(AnyQuantizer))
    readers = {kind for kind, quantizer in QUANTIZERS.items() if isinstance(quantizer, TextQuantizer)}
    assert readers == {kind for kind in QUANTIZERS if issubclass(kind, CalibratedSettings)}


@pytest.mark.parametrize("settings", [Gptq(), Ecsq()])
def test_one_that_reads_text_is_refused_without(settings: CalibratedSettings) -> None:
    with pytest.raises(
        ValueError, match=f"method {settings.method} cannot be run without a calibration text"
    ):
        quantize_state({"a.weight": torch.ones(2, 2)}, settings)


def test_one_that_reads_none_is_refused_with_text(tiny_model: object, tiny_tokens: TokenizedCorpus) -> None:
    with pytest.raises(ValueError, match="method gptq_lite reads no text"):
        quantize_with_text({}, tiny_model, tiny_tokens, GptqLite(), {})  # type: ignore[arg-type]
