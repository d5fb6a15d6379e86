r"""Names in plots are text, whatever stands in them: `$\frac$` is no formula, a control character breaks
no picture.
"""

from itertools import combinations
from math import gcd
from xml.etree import ElementTree

import numpy as np
import pytest

from schemas.frontier import Frontier, FrontierPoint
from stages.report.frontier_plot import frontier_png, frontier_svg
from stages.report.plots import COLOURS, MARKERS, budget, loss_curve, seeds_plot, tradeoff

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


# Linear RGB as people see it who lack one kind of cone (Machado et al., 2009, severity 1).
_SEEN_AS = {
    "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
_TO_XYZ = [
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
]
_HARD_TO_TELL = 10.0


def _lab(colour: str, seen: list[list[float]]) -> np.ndarray:
    """CIE L*a*b* of `#rrggbb` (D65), as that kind of vision has it."""
    channels = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    xyz = np.array(_TO_XYZ) @ np.clip(np.array(seen) @ linear, 0, 1) / np.array([0.95047, 1, 1.08883])
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", _SEEN_AS)
def test_series_have_colours_that_every_kind_of_vision_tells_apart(vision: str) -> None:
    distances = [
        float(np.linalg.norm(_lab(first, _SEEN_AS[vision]) - _lab(second, _SEEN_AS[vision])))
        for first, second in combinations(COLOURS, 2)
    ]
    assert min(distances) > _HARD_TO_TELL


def test_the_measure_finds_colours_that_are_hard_to_tell_apart() -> None:
    """Blue and purple of an earlier palette, for a reader without cones for red."""
    blue, purple = (_lab(colour, _SEEN_AS["protanopia"]) for colour in ("#3b82d6", "#8b6fd0"))
    assert np.linalg.norm(blue - purple) < _HARD_TO_TELL


def test_series_are_told_apart_without_colour() -> None:
    assert gcd(len(COLOURS), len(MARKERS)) == 1
    variants = [(f"variant {index}", 1_000 + index, 1.5) for index in range(len(MARKERS))]
    svg = tradeoff(variants, merged_bpb=1.4)
    shapes = {
        path.get("d")
        for path in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}path")
        if str(path.get("id", "")).startswith("m")
    }
    assert len(shapes) >= len(MARKERS)
    parts = [(f"part {index}", 1_000) for index in range(9)]
    texts = _texts(budget(parts, 20_000, themed=False))
    assert [text for text in texts if text.isdigit()] == [str(index + 1) for index in range(9)]
    assert "9  part 8 1,000" in texts


def test_the_loss_plot_shows_held_out_text_where_it_was_scored() -> None:
    steps = np.arange(1, 9)
    plain = {"step": steps, "loss": 4.0 - steps / 8, "qat_on": steps > 9, "snapshot": steps > 9}
    unscored, scored = np.full(8, np.nan), np.where(steps % 4 == 0, 3.5, np.nan)
    assert "held-out text" in _texts(loss_curve({**plain, "val_nats": scored}, themed=True))
    assert loss_curve({**plain, "val_nats": unscored}, True) == loss_curve(plain, True)
