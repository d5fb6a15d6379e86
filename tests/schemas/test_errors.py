"""Errors: an interrupt that an import turned into an error is an interrupt again."""

import pytest

from schemas.errors import interrupts_kept


def import_struck_by_ctrl_c(explicit: bool) -> None:
    """As pybind11 raises it, and as Python does without `from`."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as error:
        if explicit:
            raise ImportError("initialization failed") from error
        raise ImportError("initialization failed")  # noqa: B904


@pytest.mark.parametrize("explicit", [True, False])
def test_an_interrupt_inside_an_import_stays_an_interrupt(explicit: bool) -> None:
    with pytest.raises(KeyboardInterrupt), interrupts_kept():
        import_struck_by_ctrl_c(explicit)


@pytest.mark.parametrize("cause", [None, OSError("no such file")])
def test_other_import_errors_stay_what_they_are(cause: Exception | None) -> None:
    with pytest.raises(ImportError, match="no module"), interrupts_kept():
        raise ImportError("no module") from cause
