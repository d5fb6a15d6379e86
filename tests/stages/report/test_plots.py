r"""Names in plots are text, whatever stands in them: `$\frac$` is no formula, a control character breaks
no picture.
"""

from xml.etree import ElementTree

import pytest

from schemas.frontier import Frontier, FrontierPoint
from stages.report.frontier_plot import frontier_png, frontier_svg
from stages.report.plots import seeds_plot, tradeoff

NAMES = [r"publish.title=a $\frac$", "a $x$ b", "costs 5 $", r"\$a$b$", "a\x00b\x1b[2J"]


def _texts(svg: str) -> list[str]:
    return [
        element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_variants_name_is_drawn_as_it_is(name: str) -> None:
    shown = name.replace("\x00", r"\x00").replace("\x1b", r"\x1b")
    assert shown in _texts(tradeoff([(name, 1_000, 1.5), ("int6", 900, 1.6)], merged_bpb=1.4))


@pytest.mark.parametrize("name", NAMES[:-1])
def test_a_runs_name_is_drawn_as_it_is(name: str) -> None:
    point = FrontierPoint(
        scheme="gptq:int5",
        method=name,
        total_bytes=1_000,
        model_bytes=900,
        code_bytes=100,
        bits_per_parameter=5.0,
        bpb=1.5,
        gap_bpb=0.1,
        quantize_seconds=1.0,
    )
    found = Frontier(
        run_id="1",
        run_name=name,
        unquantized_bpb=1.4,
        limit_bytes=16_000_000,
        num_targets=10,
        sequence_length=8,
        precision="float32",
        shipped=point,
        points=(point,),
        failed={},
    )
    texts = _texts(frontier_svg(found))
    assert f"{name}: the same weights, every quantizer" in texts
    assert name in texts
    assert frontier_png(found).startswith(b"\x89PNG")


def test_ticks_of_a_plot_are_still_numbers() -> None:
    texts = _texts(seeds_plot([(1, 2.5), (2, 2.6)], 2.55, (2.5, 2.6), None))
    assert {"1", "2"} <= set(texts)
    assert not [text for text in texts if "$" in text]
