"""The report: its numbers are those of the files, its sentences follow the numbers, and nothing that a model wrote can
break the page."""

import copy
import json
import re
from html.parser import HTMLParser

import pytest

from minialign.evaluation import Interval
from minialign.lab.report import write_report
from minialign.lab.report.figures import curve
from minialign.lab.report.reward import calibration_figure, rivals
from minialign.lab.report.run import TRAINED, UNPRINTABLE, Run, duration, escape
from minialign.lab.report.stories import marked
from minialign.lab.report.words import title, verdict
from minialign.rlhf.reward_checks import Bin
from minialign.runs.errors import UserError

NASTY = "</p><script>alert('x')</script> & \x00\x1b $verdict {0}\nsecond line"
VOID = {"meta", "br", "link", "img"}


def interval(mean, half=0.01):
    return {"mean": mean, "low": mean - half, "high": mean + half}


def stage(gold, win_rate=None):
    parts = {name: interval(gold + shift) for name, shift in (("helpful", -0.0511), ("honest", 0.0123),
        ("harmless", 0.0377), ("gold", 0))}
    return {**parts, "length": interval(16.4, 0.5), **({"win_rate": interval(win_rate),
        "win_rate_at_equal_length": win_rate - 0.0222} if win_rate else {})}


SUMMARY = {
    "stages": {"pretrained": stage(0.4251, 0.0934), "sft": stage(0.5762, 0.2093), "rlhf": stage(0.6127, 0.5731),
               "reference": stage(0.8203)},
    "reward_model": {"accuracy": 0.7321, "low": 0.702, "high": 0.761, "length_only": 0.5264, "position_only": 0.5343,
                     "annotator_agreement": 0.7711,
                     "comparisons": 3440, "held_out": 378},
    "kl": 1.8392,
    "seconds": {"world": 23.9, "tokenizer": 0.2, "pretrain": 176.1, "sft": 98.8, "compare": 16.9, "reward": 30.7,
                "ppo": 44.8, "evaluate": 5.4, "total": 396.8},
    "peak_memory_mib": 702,
    "seed": 6,
    "parameters": 558592,
    "settings": {"documents": 16000, "false": 0.3, "rude": 0.2, "demonstrations": 12000, "judged": 2500,
                 "vocabulary": 1024, "beta": 0.1},
}  # fmt: skip


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def make(folder, summary=SUMMARY, text="Nora baked a pie. An ugly duck ate it."):
    """The files of a run that never was."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    for name in ("1-pretrained", "2-instructed", "4-reward"):
        def held_out(i):
            return {"validation": 2 / i, "accuracy": 0.5 + i / 1000} if i % 100 == 0 else {}
        write_lines(folder / name / "metrics.jsonl", [{"step": i, "loss": 3 / i + 0.5, **held_out(i)}
                                                      for i in range(1, 401)])
    write_lines(folder / "5-rlhf/metrics.jsonl", [{"step": i, "score": i / 40, "kl": i / 20, "kl_k3": i / 19,
                                                   "gold": 0.5} for i in range(1, 41)])
    write_lines(folder / "evaluation/stories.jsonl", [{"story": i, "text": f"Tale {i}. {text}", "plot": text}
                                                      for i in range(12)])
    statements = [{"start": 0, "end": 17, "verdict": "true"}, {"start": 18, "end": 38, "verdict": "false"}]
    judged = {"prompt": f"Sum up.\n{text}", "text": text, "helpful": 0.3, "honest": 0.5, "harmless": 0.0, "gold": 0.3}
    judged |= {"statements": statements, "rude": [[21, 25]]}
    write_lines(folder / "evaluation/samples.jsonl", [{"story": i, "stage": name, **judged}
                                                      for name in summary["stages"] for i in range(12)])
    return folder


def changed(**values):
    return {**copy.deepcopy(SUMMARY), **values}


def with_gold(**golds):
    summary = copy.deepcopy(SUMMARY)
    for name, gold in golds.items():
        summary["stages"][name]["gold"] = interval(gold)
    return summary


def report(folder):
    return write_report(folder).read_text(encoding="utf-8")


def words(page):
    """What stands on the page, without tags and styles."""
    text = re.sub(r"<[^>]+>", " ", re.sub(r"<(style|title).*?</\1>", "", page, flags=re.DOTALL)).replace("\u00a0", " ")
    return " ".join(text.split())


def lead(folder):
    """The paragraph at the top, without drawing all the figures."""
    return words(verdict(Run.read(folder)))


class Tags(HTMLParser):
    """Checks that every tag that is opened is closed, and collects attributes."""

    def __init__(self, page):
        super().__init__()
        self.open, self.attributes, self.names = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return report(make(tmp_path_factory.mktemp("run")))


def test_the_page_is_well_formed_and_alone_in_the_world(page):
    tags = Tags(page)
    assert tags.open == []
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(tags.names)
    assert all(value.startswith("#") for _, name, value in tags.attributes if name in ("href", "src", "xlink:href"))
    assert set(re.findall(r"https?://[^\"'\s<]*", page)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\((?!#)", page)


def test_no_id_stands_twice_and_every_anchor_leads_somewhere(page):
    attributes = Tags(page).attributes
    ids = [value for _, name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for tag, name, value in attributes if name == "href"} <= set(ids)
    assert {value for _, name, value in attributes if name == "aria-labelledby"} <= set(ids)


def test_every_drawing_says_what_it_shows_to_those_who_cannot_see_it(page):
    drawings = re.findall(r"<svg[^>]*>", page)
    assert len(drawings) == 2 + 4 + 1 + 8  # two of the pipeline, four aspects, win rates, eight curves
    assert all(re.search(r'role="img" aria-label="[^"]{20,}"', drawing) for drawing in drawings)


def test_every_number_of_the_table_of_scores_is_that_of_the_summary(page):
    rows = re.findall(r"<tr role=\"row\"><th role=\"rowheader\".*?</tr>", page, re.DOTALL)
    assert len(rows) >= len(SUMMARY["stages"])
    for row, scores in zip(rows, SUMMARY["stages"].values()):
        found = [float(number) for number in re.findall(r"-?\d+\.\d+", words(row))]
        expected = [round(scores[name][end], 3) for name in ("helpful", "honest", "harmless", "gold")
                    for end in ("mean", "low", "high")]
        assert found == pytest.approx(expected + [16.4, 15.9, 16.9], abs=1e-9)


def test_win_rates_and_the_judges_stand_as_they_were_measured(page):
    text = words(page)
    for part in ("0.093 [0.083, 0.103]", "0.573 [0.563, 0.583]", "0.071", "0.551", "0.732 [0.702, 0.761]", "0.526",
                 "0.534", "0.771"):
        assert part in text, part


def test_the_pipeline_names_files_steps_and_seconds(page):
    drawing = words(re.search(r'<svg class="tall".*?</svg>', page, re.DOTALL).group())
    for part in ("16,000 documents · 24 s", "400 steps · 2 min 56 s", "40 updates · 45 s", "3,818 choices"):
        assert part in drawing, part
    for part in ("1-pretrained/", "5-rlhf/", "KL 1.84", "held-out loss 0.01"):
        assert part in drawing, part


def test_the_text_of_a_box_fits_its_box(page):
    drawing = re.search(r'<svg class="wide".*?</svg>', page, re.DOTALL).group()
    assert max(len(text) for text in re.findall(r'class="fact"[^>]*>([^<]*)', drawing)) <= 29


def test_the_cost_says_seconds_memory_and_seed_and_the_next_commands(page):
    text = words(page)
    assert "6 min 37 s in all, at most 702 MiB of memory, 558,592 parameters, seed 6." in text
    assert "python -m minialign sample" in text and "python -m minialign ppo --policy" in text and "--seed 7" in text


def test_the_order_that_holds_is_said_to_hold(tmp_path, page):
    text = lead(make(tmp_path))
    assert text in words(page)
    assert "raised the gold score from 0.425 to 0.576" in text and "raised the gold score from 0.576 to 0.613" in text
    assert "holds here" in text and "does not hold" not in text
    assert "better than a judge that only sees length or position" in text
    assert "prefer them to the references: RLHF wins 57.3 % [56.3, 58.3]" in text


def test_a_reversed_order_is_said_to_be_reversed(tmp_path):
    text = lead(make(tmp_path, with_gold(pretrained=0.6, sft=0.5, rlhf=0.4)))
    assert "Instruction tuning lowered the gold score from 0.600 to 0.500" in text
    assert "RLHF lowered the gold score from 0.500 to 0.400" in text
    assert "does not hold here: it is reversed between pretrained and instruction-tuned and it is " in text
    assert "reversed between instruction-tuned and RLHF" in text
    assert "raised" not in text and "holds here" not in text


def test_intervals_that_overlap_settle_nothing_even_if_the_mean_is_higher(tmp_path):
    folder = make(tmp_path, with_gold(sft=0.570, rlhf=0.580))
    assert "RLHF took the gold score from 0.570 to 0.580 , but the 95 % intervals overlap" in lead(folder)
    assert "does not hold here: instruction-tuned and RLHF cannot be told apart" in lead(folder)
    assert "no measurable gain from feedback" in title(Run.read(folder))


def test_the_words_about_people_follow_the_win_rate(tmp_path):
    expected = {0.3: "still prefer the references", 0.505: "do not clearly prefer either",
                0.7: "prefer them to the references"}
    for number, (rate, said) in enumerate(expected.items()):
        summary = copy.deepcopy(SUMMARY)
        summary["stages"]["rlhf"]["win_rate"] = interval(rate)
        assert said in lead(make(tmp_path / str(number), summary))


def test_a_reward_model_that_guesses_is_told_on(tmp_path):
    guess = {"accuracy": 0.53, "low": 0.48, "high": 0.58, "length_only": 0.52}
    blind = {"accuracy": 0.60, "low": 0.55, "high": 0.65, "length_only": 0.61}
    assert "cannot be told from guessing" in lead(make(tmp_path / "a", changed(reward_model=guess)))
    assert "cannot be told from a judge that does not read (61.0 %)" in lead(make(tmp_path / "b",
        changed(reward_model=blind)))


def test_ten_stories_are_shown_each_as_every_stage_told_it(page):
    assert len(re.findall(r'<article class="story">', page)) == 10
    assert len(re.findall(r'<p class="summary">', page)) == 40
    assert "Tale 9." in page and "Tale 10." not in page


def test_a_verdict_has_a_word_and_a_shape_besides_its_colour(page):
    assert '<span class="v true">Nora baked a pie.</span><span class="hear"> (true)</span>' in page
    assert 'An <mark class="rude">ugly</mark> duck ate it.</span><span class="hear"> (not true)</span>' in page
    style = re.search(r"<style>.*?</style>", page, re.DOTALL).group()
    for rule in (r"\.true::after \{ content", r"\.false::after \{ content", r"\.unclear::after \{ content",
                 r"\.false \{[^}]*wavy", r"\.unclear \{[^}]*dotted"):
        assert re.search(rule, style)


def test_nothing_that_a_model_wrote_can_break_the_page(tmp_path):
    page = report(make(tmp_path, text=NASTY))
    tags = Tags(page)
    assert tags.open == [] and "script" not in tags.names
    plain = re.sub(r"</?(span|mark)[^>]*>| \((not )?true\)", "", page)
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; \ufffd\ufffd $verdict" in plain
    assert "$verdict" in page and not UNPRINTABLE.search(page)


@pytest.mark.parametrize(
    ("statements", "rude"),
    [
        ([], []),
        ([(-5, 99, "true")], [(-3, 200)]),
        ([(0, 9, "true"), (4, 12, "false")], [(7, 10), (8, 11)]),
        ([(9, 3, "true"), (50, 60, "false"), (2, 5, "new word")], [(5, 5)]),
    ],
)
def test_marking_never_loses_or_adds_a_character(statements, rude):
    text = "a < b & 'c' d"
    sample = {"text": text, "statements": [dict(zip(("start", "end", "verdict"), s)) for s in statements],
              "rude": [list(span) for span in rude]}
    html = marked(sample)
    Tags(html)
    assert re.sub(r"<span class=\"hear\">.*?</span>|<[^>]+>", "", html) == escape(text)


def test_the_reward_model_s_worth_is_shown_where_it_was_measured(tmp_path, page):
    assert "It was not measured in this run." in words(page)
    bins = [{"predicted": 0.55 + i / 10, "observed": interval(0.5 + i / 11), "count": 40} for i in range(4)]
    row = {"kl": 1.8351, "stories": 200, "score": interval(0.71), "gold": interval(0.6432),
           "win_rate": interval(0.3131)}
    rows = [{"name": name, **row, "win_rate_at_equal_length": interval(0.2929)} for name in ("RLHF", "best of 16")]
    folder = make(tmp_path, changed(reward_model={**SUMMARY["reward_model"], "calibration": bins}, best_of_n=rows),
                  NASTY)
    lines = [json.loads(line) for line in (folder / "evaluation/samples.jsonl").read_text().splitlines()]
    write_lines(folder / "evaluation/samples.jsonl", [r | {"proxy": r["story"] / 3, "text": f"{r['text']} {r['story']}"}
                                                      for r in lines])
    page = report(folder)
    tags, text = Tags(page), words(page)
    assert tags.open == [] and "script" not in tags.names and not UNPRINTABLE.search(page)
    assert "predicted 0.55, observed 0.50; predicted 0.65" in page
    assert "only the length 0.53" in text and "only the position 0.53" in text
    for part in ("best of 16 1.84 0.71 [0.70, 0.72] 0.643 [0.633, 0.653] 0.313 [0.303, 0.323] 0.293 [0.283, 0.303]",
                 "The same 200 test stories"):
        assert part in text, part
    section = re.search(r'<section id="reward".*?</section>', page, re.DOTALL).group()
    assert section.count("<details>") == 10
    assert "liked beyond its worth" in section and "better than it thinks" in section
    assert section.index("better than it thinks") > section.rindex("liked beyond its worth")


def test_the_stories_of_the_rivals_are_said_to_be_some_of_all(tmp_path):
    row = {"name": "RLHF", "kl": 1.8, "stories": 4, **dict.fromkeys(("score", "gold", "win_rate"), interval(0.5))}
    folder = make(tmp_path, changed(best_of_n=[row | {"win_rate_at_equal_length": interval(0.5)}]))
    assert "The first 4 of 12 test stories for all, so RLHF’s numbers are not those above" in words(rivals(
        Run.read(folder)))


def test_the_legend_of_the_calibration_lies_above_its_whiskers():
    bins = [Bin(0.5 + i / 10, Interval(0.6, 0.2, 1.0), 4) for i in range(4)]
    fig = calibration_figure(bins, {"only the length": 0.49, "only the position": 0.4})
    fig.draw_without_rendering()
    (axes,), (legend,) = fig.axes, fig.legends
    assert legend.get_window_extent().y0 >= axes.get_window_extent().y1 and axes.get_legend() is None
    assert legend.get_window_extent().x1 <= fig.bbox.x1


@pytest.mark.parametrize("steps", [[12], [1], [200, 400]])
def test_the_axis_of_steps_begins_at_0_also_where_one_step_was_measured(steps):
    said = curve("Accuracy", [{"step": step, "accuracy": 0.5} for step in steps], {"accuracy": "held out"},
                 ("step", "share"), "")
    numbers = [float(text) for text in re.findall(r"<text[^>]*>(\d[\d.]*)</text>", said)]
    ticks = [n for n in numbers if n >= 1 or n == 0]
    assert 0.0 in numbers and all(tick == int(tick) for tick in ticks) and max(ticks) in (steps[-1], steps[-1] + 0.0)


def test_a_summary_without_a_word_is_shown_as_that(tmp_path):
    assert "(it says nothing)" in report(make(tmp_path, text="  "))


def test_missing_optional_keys_break_nothing(tmp_path):
    bare = {"stages": {name: {"gold": interval(0.5)} for name in ("pretrained", "rlhf")}}
    folder = make(tmp_path, bare)
    for name in TRAINED.values():
        write_lines(folder / name / "metrics.jsonl", [{"step": 1}])
    write_lines(folder / "evaluation/samples.jsonl", [{"story": 0, "stage": "rlhf", "text": "Short."}])
    write_lines(folder / "evaluation/stories.jsonl", [{"story": 0, "text": "A tale."}])
    page = report(folder)
    assert Tags(page).open == [] and "None" not in words(page) and "nan" not in words(page)
    assert "0.500" in page and "Short." in page


def test_a_log_of_one_line_and_one_that_a_fault_cut_short_are_drawn(tmp_path):
    folder = make(tmp_path)
    write_lines(folder / "5-rlhf/metrics.jsonl", [{"step": 1, "score": -0.1, "kl": 0.0, "kl_k3": 0.0}])
    with open(folder / "1-pretrained/metrics.jsonl", "a") as file:
        file.write('{"step": 401, "lo')
    assert "PPO: score against KL" in report(folder)


def test_the_same_files_make_the_same_bytes(tmp_path):
    folder = make(tmp_path)
    assert report(folder) == report(folder)


LOGS = [f"{name}/metrics.jsonl" for name in TRAINED.values()]


@pytest.mark.parametrize("name", ["summary.json", *LOGS, "evaluation/samples.jsonl", "evaluation/stories.jsonl"])
def test_a_missing_file_is_named(tmp_path, name):
    (make(tmp_path) / name).unlink()
    with pytest.raises(UserError, match=re.escape(name)):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_summary_of_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="summary.json.*stages"):
        write_report(make(tmp_path, {"stages": {}}))


@pytest.mark.parametrize(("seconds", "text"), [(0.24, "0.2 s"), (9.96, "10.0 s"), (44.4, "44 s"), (119.6, "2 min 0 s"),
                                               (396.8, "6 min 37 s")])
def test_times_are_written_as_people_say_them(seconds, text):
    assert duration(seconds) == text
