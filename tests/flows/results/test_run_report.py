"""What a run says of its bytes."""

import pytest

from flows.results.run_report import fit_message
from schemas.check_size import SizeReport
from schemas.quantizer_settings import Ecsq, FitSettings, GptqLite

SIZE = SizeReport(
    limit_bytes=16_000_000,
    total_bytes=259_788,
    code_bytes=252_000,
    model_bytes=7_788,
    margin_bytes=15_740_212,
    fits=True,
    files=(),
    tensor_groups=(),
    largest=(),
)


@pytest.mark.parametrize(
    ("asked", "found"), [(260_000, "is kept, 212 left"), (259_000, "is exceeded by 788")]
)
def test_a_fit_is_told_by_the_limit_that_was_asked_for(asked: int, found: str) -> None:
    assert fit_message(Ecsq(fit=FitSettings(limit_bytes=asked)), SIZE) == (
        f"quantize.fit.limit_bytes = {asked:,} {found}; the submission's own limit (check_size.limit_bytes) "
        "is 16,000,000"
    )


def test_without_a_fit_the_limit_of_the_submission_says_it_all() -> None:
    assert fit_message(GptqLite(), SIZE) is None
    assert fit_message(Ecsq(), SIZE) is None
