"""The shared figures: same bytes every time, readable without colour, at home on a light page and on a dark one."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
from matplotlib.image import imread

from minialign.evaluation import Interval
from minialign.lab.plotting import (
    FAINT,
    INK,
    STYLES,
    as_svg,
    bars_with_intervals,
    figure,
    interval_of,
    legend,
    line,
    lines_beside_one_seed,
    lines_with_intervals,
    moving_mean,
    plain_ticks,
    reference_line,
    save_png,
    whiskers,
)
from minialign.runs.errors import UserError

LOW, HIGH = {"mean": 0.4, "low": 0.35, "high": 0.5}, Interval(0.6, 0.5, 0.7)


def drawn(name="a", value=0.5):
    fig, axes = figure("step", "loss, nats a token")
    lines_with_intervals(axes, [1, 2, 3], {f"{name} & <co>": [LOW, HIGH, value], "other": [1.0, 2.0, 3.0]})
    reference_line(axes, 0.3, "chance")
    legend(axes)
    return fig


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_same_figure_is_the_same_bytes():
    assert as_svg(drawn(), "x") == as_svg(drawn(), "x")
    assert as_svg(drawn(), "x") != as_svg(drawn(value=0.6), "x")


def test_an_svg_is_whole_xml_and_asks_nobody_for_anything():
    svg = as_svg(drawn(), "two curves")
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert re.findall(r"https?://[^\"' ]+", svg) == ["http://www.w3.org/2000/svg"]
    assert "<metadata" not in svg and "<style" not in svg and "<!--" not in svg


def test_two_figures_of_one_page_share_no_id_and_point_only_at_their_own():
    ids = []
    for svg in (as_svg(drawn(), "x"), as_svg(drawn("b"), "x")):
        own = re.findall(r'\bid="([^"]+)"', svg)
        used = re.findall(r"url\(#([^)]+)\)", svg) + re.findall(r'href="#([^"]+)"', svg)
        assert len(own) == len(set(own)) and used and set(used) <= set(own)
        ids.append(set(own))
    assert not ids[0] & ids[1]


def test_ink_grid_and_styles_follow_the_page():
    svg = as_svg(drawn(), "x")
    assert INK not in svg and "currentColor" in svg and f"var(--grid, {FAINT})" in svg
    assert {"var(--series-0, #0072b2)", "var(--series-1, #c24f00)"} <= set(re.findall(r"var\(--series-\d, "
        r"#[0-9a-f]{6}\)", svg))
    bare = re.sub(r"var\([^)]*\)", "", svg)
    assert re.findall(r"#(?:[0-9a-f]{6})\b", bare) == [] and "#000000" not in svg


def test_text_stays_text_and_what_people_wrote_is_escaped():
    svg = as_svg(drawn(), 'says "a" < b')
    assert "loss, nats a token" in svg and "a &amp; &lt;co&gt;" in svg
    assert 'role="img" aria-label="says &quot;a&quot; &lt; b"' in svg


def test_no_two_styles_differ_by_colour_alone():
    assert len({str(style) for _, style, _ in STYLES}) == len({marker for _, _,
        marker in STYLES}) == len({colour for colour, _, _ in STYLES}) == len(STYLES)


@pytest.mark.parametrize("colour", [INK, *(colour for colour, _, _ in STYLES)])
def test_every_colour_stands_out_on_white(colour):
    assert 1.05 / (luminance(colour) + 0.05) >= 3  # WCAG 2.1, §1.4.11: graphics


def test_an_interval_may_come_in_three_forms():
    assert interval_of(LOW) == (0.4, 0.35, 0.5)
    assert interval_of(HIGH) == (0.6, 0.5, 0.7)
    assert interval_of(3) == (3, 3, 3) == interval_of({"mean": 3})


def test_a_curve_with_intervals_has_a_band_from_low_to_high_and_one_without_has_none():
    _, axes = figure("x", "y")
    lines_with_intervals(axes, [1, 2], {"a": [LOW, HIGH]})
    lines_with_intervals(axes, [1, 2], {"b": [0.1, 0.2]}, first=1)
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == (0.35, 0.7)
    assert [curve.get_color() for curve in axes.lines] == [STYLES[0][0], STYLES[1][0]]


def test_a_curve_of_one_point_can_be_seen():
    _, axes = figure("x", "y")
    line(axes, 0, [1], [2], "lonely")
    line(axes, 1, list(range(100)), list(range(100)), "long")
    assert [curve.get_marker() for curve in axes.lines] == ["o", "None"]


def test_bars_stand_in_order_with_mean_whisker_and_number():
    fig, axes = figure("score", "")
    bars = bars_with_intervals(axes, {"first": LOW, "second": HIGH, "exact": 1})
    assert [bar.get_width() for bar in bars] == [0.4, 0.6, 1]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second", "exact"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first one is on top
    assert [text.get_text() for text in axes.texts] == ["0.40", "0.60", "1.00"]
    spans = [segment[:, 0].tolist() for whisker in axes.collections for segment in whisker.get_segments()]
    assert spans == [pytest.approx([0.35, 0.5]), pytest.approx([0.5, 0.7])]


def test_whiskers_reach_from_low_to_high():
    _, axes = figure("x", "y")
    whiskers(axes, 2, [1, 2], [LOW, HIGH], "both")
    (bars,) = axes.collections
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [pytest.approx([0.35, 0.5]),
        pytest.approx([0.5, 0.7])]


def test_a_picture_is_written_whole_on_white_and_again_with_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        save_png(drawn(), tmp_path / "deep" / name)
    assert (tmp_path / "deep/a.png").read_bytes() == (tmp_path / "deep/b.png").read_bytes()
    assert imread(tmp_path / "deep/a.png")[0, 0].tolist()[:3] == [1, 1, 1]
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["a.png", "b.png"]


def test_a_picture_that_cannot_be_written_says_where(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="figure.png"):
        save_png(drawn(), tmp_path / "file" / "figure.png")


def test_a_moving_mean_looks_back_only_and_is_shorter_at_the_beginning():
    assert moving_mean([4.0, 2.0, 0.0, 6.0], 2) == [4.0, 3.0, 1.0, 3.0]
    assert moving_mean([], 3) == [] and moving_mean([5.0], 3) == [5.0]


def ticks_of(low, high, **scale):
    fig, axes = figure("x", "y")
    axes.plot([1, 2], [low, high])
    axes.set_yscale("log", **scale)
    axes.set_ylim(low, high)
    plain_ticks(fig)
    return [label.get_text() for label in axes.get_yticklabels()], list(axes.yaxis.get_minorticklocs())


def test_a_short_logarithmic_axis_has_plain_numbers_and_few_of_them():
    assert ticks_of(0.011, 0.044) == (["0.015", "0.02", "0.03", "0.04"], [])
    assert ticks_of(900, 60_000)[0] == ["1,000", "2,000", "5,000", "10,000", "20,000", "50,000"]


def test_a_long_logarithmic_axis_and_one_of_powers_of_two_keep_their_own_ticks():
    labels, between = ticks_of(1e-4, 1)
    assert any("10^" in label for label in labels) and len(between) > 0
    assert any("2^" in label for label in ticks_of(1, 8, base=2)[0])


def test_numbers_beside_each_other_get_more_room_than_numbers_above_each_other():
    fig, axes = figure("parameters", "y")
    axes.plot([40_000, 200_000], [1, 2])
    axes.set_xscale("log")
    axes.set_xlim(40_000, 200_000)
    plain_ticks(fig)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["50,000", "100,000", "200,000"]


def test_what_one_seed_has_shown_stands_beside_the_curve_and_its_interval_does_not_shrink_there():
    _, axes = figure("x", "y")
    lines_beside_one_seed(axes, [1, 2, 3], {"a": [LOW, 0.5, HIGH], "b": [LOW, 0.7, HIGH]})
    curves = {line.get_label(): line for line in axes.get_lines()}
    assert [list(curves[name].get_xdata()) for name in ("a", "b")] == [[1, 3], [1, 3]]
    assert list(zip(*curves["one seed"].get_data())) == [(2, 0.5),
                                                         (2, 0.7)] and curves["one seed"].get_linestyle() == "None"
    _, axes = figure("x", "y")
    lines_beside_one_seed(axes, [1, 2], {"a": [0.1, 0.2]})  # a quick look: one seed everywhere
    assert [list(line.get_xdata()) for line in axes.get_lines()] == [[1, 2]]
