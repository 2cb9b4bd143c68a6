"""The runner of the claims: what a cached model depends on, and that every verdict follows from its table."""

import html
import pickle
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from typed import type_in

import minialign
from minialign.lab import claims
from minialign.lab.claims import Bench, control, imported, reached, runner, source_fingerprint
from minialign.lab.claims.page import (
    ALT,
    MAP,
    NOTEBOOKS,
    between,
    finding,
    measured,
    number_rows,
    verdict_table,
    write_page,
    write_results,
    written_parts,
)
from minialign.lab.claims.runner import CLAIMS, HEADINGS, HOLDS, PARTLY, SIGNS, load
from minialign.lab.claims.tuned import TRIED, best_of_powers
from minialign.lab.exercises.catalogue import CHAPTERS
from minialign.runs.errors import UserError
from minialign.runs.files import read_json, write_json

PACKAGE = Path(minialign.__file__).parent


def changed(tmp_path, monkeypatch, name, line):
    """A copy of the package in which a line was added to one file; the fingerprints of a claim before and after."""
    for path in PACKAGE.rglob("*"):
        if path.suffix in (".py", ".json"):
            copy = tmp_path / "minialign" / path.relative_to(PACKAGE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    monkeypatch.setattr(claims, "__file__", str(tmp_path / "minialign/lab/claims/__init__.py"))
    imported.cache_clear()
    before = source_fingerprint("minialign.lab.claims.instructed")
    with open(tmp_path / "minialign" / name, "a", encoding="utf-8") as file:
        file.write(line)
    imported.cache_clear()
    return before, source_fingerprint("minialign.lab.claims.instructed")


def test_a_cached_t0_depends_on_model_loop_recipe_and_wordings_but_not_on_other_chapters(tmp_path, monkeypatch):
    files = {path.relative_to(PACKAGE).as_posix() for path in reached("minialign.lab.claims.instructed")}
    assert {"transformer.py", "training.py", "instruct/t0.py", "lab/demo/instruct.py", "world/datasets.py",
            "runs/tensors.py"} <= files
    assert not {name for name in files if name.startswith(("quant/", "peft/", "distill/", "lab/pretrained/"))}
    before, after = changed(tmp_path, monkeypatch, "transformer.py", "# another line\n")
    assert before != after
    imported.cache_clear()


def test_a_changed_table_of_wordings_makes_the_model_anew_and_a_changed_claim_does_not(tmp_path, monkeypatch):
    before, after = changed(tmp_path / "a", monkeypatch, "world/prompts.json", " ")
    assert before != after
    before, after = changed(tmp_path / "b", monkeypatch, "lab/claims/t0_unseen_tasks.py", "# another line\n")
    assert before == after
    before, after = changed(tmp_path / "c", monkeypatch, "quant/mappings.py", "# another line\n")
    assert before == after
    imported.cache_clear()


def test_relative_imports_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "__file__", str(tmp_path / "minialign/lab/claims/__init__.py"))
    file = tmp_path / "minialign" / "lab" / "realdata" / "texts.py"
    file.parent.mkdir(parents=True)
    file.write_text("from .packages import fetch\nfrom ...runs.errors import UserError\n", encoding="utf-8")
    assert {"minialign.lab.realdata.packages", "minialign.runs.errors"} <= set(imported(file))


def test_a_stage_is_made_once_and_again_for_another_setting(tmp_path):
    bench, made = Bench(tmp_path / "own", tmp_path / "cache"), []

    def make(folder):
        folder.mkdir(parents=True, exist_ok=True)
        made.append(folder)

    assert bench.cached("stage", [1], make) == bench.cached("stage", [1], make) != bench.cached("stage", [2], make)
    assert len(made) == 2


def verdict(id, **changes):
    facts = {"id": id, "claim": "x < y & z", "source": "Somebody 2020", "verdict": "holds", "why": "1 | 2 < 3",
             "checks": {"a": True, "b": False}}
    return facts | {"seconds": 1.0, "seeds": 3, "fast": False} | changes


def test_every_claim_stands_under_a_heading_and_has_a_file():
    assert sorted(id for ids in HEADINGS.values() for id in ids) == sorted(CLAIMS)
    assert all(load(id).CLAIM.id == id for id in CLAIMS)


def test_the_page_shows_what_was_run_and_nothing_that_it_holds_can_break_it(tmp_path):
    write_json(tmp_path / "bitfit" / "verdict.json", verdict("bitfit"))
    write_json(tmp_path / "lora-rank" / "verdict.json", verdict("lora-rank", fast=True))
    (tmp_path / "bitfit" / "table.csv").write_text("a,b\n<1>,2\n" + "3,4\n" * 100, encoding="utf-8")
    (tmp_path / "bitfit" / "figure.png").write_bytes(b"\x89PNG")
    page = write_page(tmp_path).read_text(encoding="utf-8")
    assert "x &lt; y &amp; z" in page and "&lt;1&gt;" in page and page.count("<section") == 2
    assert "the first 60 of 101 rows" in page
    assert page.count("a quick look") == 1 and "data:image/png;base64,iVBORw==" in page and "$" not in page


def two_readmes(folder, *names):
    """The file of the map and the README.md beside the results, with the markers of the named parts."""
    paths = folder / "docs" / "map.md", folder / "data" / "claims" / "README.md"
    for path, own in zip(paths, (["map"], ["gallery", "verdicts"])):
        marked = [f"<!-- {name} -->\nold\n<!-- end of {name} -->" for name in own if name in names]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("before\n" + "\n".join(marked) + "\nafter\n", encoding="utf-8")
    return paths


def test_the_readmes_say_what_was_run_in_full_and_what_was_not(tmp_path):
    readme, beside = two_readmes(tmp_path, "map", "gallery", "verdicts")
    write_json(beside.parent / "bitfit" / "verdict.json", verdict("bitfit"))
    write_json(beside.parent / "lora-rank" / "verdict.json", verdict("lora-rank", fast=True))
    (beside.parent / "bitfit" / "figure.png").write_bytes(b"\x89PNG")
    (beside.parent / "bitfit" / "notes.md").write_text("what was tried", encoding="utf-8")
    write_results(readme, beside.parent)
    texts = [path.read_text(encoding="utf-8") for path in (readme, beside)]
    assert all(text.startswith("before\n") and text.endswith("after\n") and "\nold\n" not in text for text in texts)
    assert "| BitFit | [`peft/bitfit.py`](../minialign/peft/bitfit.py) | [06](../notebooks/06_fine_tuning" in texts[0]
    read = {name: between(texts[1], name, beside)[1] for name in ("gallery", "verdicts")}
    assert "](../../minialign/lab/claims/bitfit.py) | ✓ **holds** | 1 \\| 2 < 3 | [notes](bitfit/" in read["verdicts"]
    assert read["verdicts"].count("not run in full") == len(CLAIMS) - 1 and read["verdicts"].count("notes.md") == 1
    assert read["gallery"].count("<img") == 1 and 'src="bitfit/figure.png" alt="1 | 2 &lt; 3"' in read["gallery"]
    write_results(readme, beside.parent)
    assert [path.read_text(encoding="utf-8") for path in (readme, beside)] == texts  # written again, the same


@pytest.mark.parametrize("missing", ["map", "verdicts"])
def test_files_without_the_markers_are_left_as_they_are(tmp_path, missing):
    names = [name for name in ("map", "gallery", "verdicts") if name != missing]
    paths = two_readmes(tmp_path, *names)
    before = [path.read_bytes() for path in paths]
    with pytest.raises(UserError, match=f"has no place for the {missing}"):
        write_results(paths[0], paths[1].parent)
    assert [path.read_bytes() for path in paths] == before


def test_the_two_readmes_are_what_the_results_say():
    for path, parts in written_parts(PACKAGE.parent / "docs" / "map.md", PACKAGE.parent / "data" / "claims").items():
        text = path.read_text(encoding="utf-8")
        for name, content in parts.items():
            assert between(text, name, path)[1].strip() == content.strip(), name


def test_every_link_beside_the_results_leads_somewhere_and_every_alternative_text_is_short():
    beside = PACKAGE.parent / "data" / "claims" / "README.md"
    text = beside.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r'(?:src|href)="([^"#]+)"', text)
    assert len(links) > 70 and [link for link in links if not (beside.parent / link).exists()] == []
    texts = [html.unescape(alt) for alt in re.findall(r'alt="([^"]*)"', text)]
    assert len(texts) == len(CLAIMS) and all(20 < len(alt) <= ALT for alt in texts)


@pytest.mark.parametrize("id", CLAIMS)
def test_a_kept_verdict_is_what_the_judge_says_of_the_kept_table(id, tmp_path):
    kept = PACKAGE.parent / "data" / "claims" / id
    (tmp_path / runner.TABLE).write_bytes((kept / runner.TABLE).read_bytes())
    again, said = runner.judged(id, tmp_path), read_json(kept / "verdict.json")
    assert {key: said[key] for key in again} == again and said["fast"] is False and said["seeds"] >= 3
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_a_table_is_read_as_it_was_written():
    first, second = {"way": "a, b", "bits": 8, "loss": 0.123457}, {"way": "c", "bits": 4, "loss": 1e-09, "more": "x"}
    assert runner.from_csv(runner.as_csv([first | {"none": None}, second])) == [first, second]


def test_judging_again_changes_the_verdict_and_not_what_was_measured(tmp_path, monkeypatch, capsys):
    kept = PACKAGE.parent / "data" / "claims" / "ptq-qat"
    shutil.copytree(kept, tmp_path / "ptq-qat")
    monkeypatch.setattr("minialign.lab.claims.ptq_qat.judge", lambda table: ({"anything": False}, f"{len(table)} rows"))
    assert type_in("claims ptq-qat --judge --out {d}", tmp_path) == 0
    before, after = (read_json(folder / "verdict.json") for folder in (kept, tmp_path / "ptq-qat"))
    lines = (kept / runner.TABLE).read_text(encoding="utf-8").splitlines()[1:]
    rows = sum("as on its card" not in line for line in lines)  # a judge does not look at controls
    assert f"ptq-qat does not hold at this scale: {rows} rows" in capsys.readouterr().out
    assert after["verdict"] == runner.FAILS != before["verdict"]
    assert {key for key in before if after[key] != before[key]} == {"verdict", "why", "checks"}
    assert (tmp_path / "ptq-qat" / runner.TABLE).read_bytes() == (kept / runner.TABLE).read_bytes()
    with pytest.raises(UserError, match="nothing to judge"):
        runner.judge_again(["bitfit"], tmp_path)


def test_the_map_leads_every_heading_to_files_and_notebooks_that_there_are():
    assert [path for files, _ in MAP.values() for path in files.split() if not (PACKAGE / path).exists()] == []
    assert {number for _, numbers in MAP.values() for number in numbers} | {0} == set(range(len(NOTEBOOKS)))
    assert [name for name in NOTEBOOKS if int(name[:2]) not in CHAPTERS] == []
    assert {path.stem for path in (PACKAGE.parent / "notebooks").glob("*.ipynb")} <= set(NOTEBOOKS)


@pytest.mark.parametrize("said", SIGNS)
def test_a_verdict_is_told_by_a_sign_and_by_words_not_by_colour_alone(tmp_path, said):
    write_json(tmp_path / "bitfit" / "verdict.json", verdict("bitfit", verdict=said))
    page = write_page(tmp_path).read_text(encoding="utf-8")
    assert f'title="{said}">{SIGNS[said][1]}</span><a href="#bitfit">' in page and f">{said}</p>" in page
    assert len({sign for _, sign in SIGNS.values()}) == len({style for style, _ in SIGNS.values()}) == 5


def test_a_control_that_failed_makes_a_claim_not_measurable_whatever_the_comparison_says(tmp_path):
    kept = PACKAGE.parent / "data" / "claims" / "ptq-qat"
    shutil.copytree(kept, tmp_path / "ptq-qat")
    table = runner.from_csv((kept / runner.TABLE).read_text(encoding="utf-8"))
    table = [row for row in table if "control" not in row]  # its own stands aside
    for values, said in (((0.97, 0.94, 0.95), runner.HOLDS), ((0.97, 0.94, 0.93), runner.UNMEASURABLE)):
        rows = [control("it reads", value, 0.95, seed) for seed, value in enumerate(values)]
        (tmp_path / "ptq-qat" / runner.TABLE).write_text(runner.as_csv([*table, *rows]), encoding="utf-8")
        assert type_in("claims --judge --out {d}", tmp_path) == 0
        found, page = read_json(tmp_path / "ptq-qat" / "verdict.json"), (tmp_path / "index.html").read_text("utf-8")
        held = said == runner.HOLDS
        assert found["verdict"] == said and set(found["checks"].values()) == ({True} if held else {None})
        mean = sum(values) / 3
        assert found["controls"] == [{"name": "it reads", "value": round(mean, 4), "threshold": 0.95, "passed": held}]
        assert "it reads: 0.9" in page and ("What it takes for granted is not there (it reads)" in page) != held
    assert f"| – **{runner.UNMEASURABLE}** |" in verdict_table(tmp_path, "claims")


def test_one_seed_decides_nothing_where_three_do(tmp_path):
    kept = PACKAGE.parent / "data" / "claims" / "ptq-qat"
    shutil.copytree(kept, tmp_path / "ptq-qat")
    table = runner.from_csv((kept / runner.TABLE).read_text(encoding="utf-8"))
    for seeds, said in (("0", runner.UNDECIDED), ("01", runner.UNDECIDED), ("012", runner.HOLDS)):
        few = runner.as_csv([row for row in table if str(row["seed"]) in seeds])
        (tmp_path / "ptq-qat" / runner.TABLE).write_text(few, encoding="utf-8")
        assert type_in("claims --judge --out {d}", tmp_path) == 0
        found = read_json(tmp_path / "ptq-qat" / "verdict.json")
        assert found["verdict"] == said and set(found["checks"].values()) == ({True} if seeds == "012" else {None})
        page = (tmp_path / "index.html").read_text(encoding="utf-8")
        assert page.count('class="mark undecided"') == (0 if seeds == "012" else 5) and 'class="mark fails"' not in page
        sentence = "All 4 statements hold." if seeds == "012" else "so nothing is decided about 4 statements."
        assert sentence in page
    write_json(tmp_path / "ptq-qat" / "verdict.json", found | {"verdict": runner.UNDECIDED})
    assert "| ? **undecided, too few seeds** |" in verdict_table(tmp_path, "claims")


@pytest.mark.parametrize("checks, sentence", [
    ({"a": True}, "Its statement holds."), ({"a": False}, "Its statement does not hold."),
    ({"a": False, "b": False}, "None of 2 statements holds."),
    ({"a": True, "b": False, "c": False}, "1 of 3 statements holds."),
    ({"a": True, "b": True, "c": False}, "2 of 3 statements hold."),
])
def test_a_finding_is_a_sentence(checks, sentence):
    assert finding(checks) == sentence


def test_one_is_one_and_not_many(tmp_path):
    write_json(tmp_path / "bitfit" / "verdict.json", verdict("bitfit", seeds=1))
    one = write_page(tmp_path).read_text(encoding="utf-8")
    assert "<p>1 claim. Each" in one and "· 1 seed ·" in one
    write_json(tmp_path / "lora-rank" / "verdict.json", verdict("lora-rank"))
    assert "<p>2 claims. Each" in write_page(tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize("why, rows", [
    ("error at 8 bits: normal 1.038 [1.004, 1.071]; weights 1.047 [0.990, 1.104]; the largest move is 0.5000 steps",
     [("error at 8 bits", None), ("normal", "1.038 [1.004, 1.071]"), ("weights", "1.047 [0.990, 1.104]"),
      ("the largest move is 0.5000 steps", "")]),
    ("by bottleneck: 1 (0.8%) 0.011 [-0.005, 0.026], 4 (1.6%) 0.012 [-0.010, 0.033]",
     [("by bottleneck", None), ("1 (0.8%)", "0.011 [-0.005, 0.026]"), ("4 (1.6%)", "0.012 [-0.010, 0.033]")]),
    ("by size 1: 0.529 ± 0.021, 3: 0.529 ± 0.028 (one seed)",
     [("by size", None), ("1", "0.529 ± 0.021"), ("3", "0.529 ± 0.028 (one seed)")]),
    ("16 vectors instead of 1: 0.044 [-0.006, 0.095]", [("16 vectors instead of 1", "0.044 [-0.006, 0.095]")]),
    ("soft is 0.009 [0.004, 0.015] nats ahead (half)", [("soft is … nats ahead (half)", "0.009 [0.004, 0.015]")]),
    ("behind by 0.2 [0.1, 0.3] and 0.4 [0.3, 0.5]", [("behind by", "0.2 [0.1, 0.3]\n0.4 [0.3, 0.5]")]),
    ("the first 8 of 96 hold 0.8", [("the first 8 of 96 hold 0.8", "")]),
])
def test_the_numbers_that_decide_are_rows_of_a_table(why, rows):
    assert number_rows(why) == rows
    assert measured(why).count("<tr>") == len(rows) and "; " not in measured(why)


def test_every_number_of_every_kept_verdict_stands_in_its_table_once():
    for id in CLAIMS:
        why = read_json(PACKAGE.parent / "data" / "claims" / id / "verdict.json")["why"]
        rows = number_rows(why)
        digits = re.findall(r"\d+", " ".join(f"{words} {value or ''}" for words, value in rows))
        assert sorted(digits) == sorted(re.findall(r"\d+", why)), id
        assert len(rows) > 2 and all(words for words, _ in rows), id


@pytest.mark.parametrize("best, tried", [(0, [-1, 0, 1]), (1, [0, 1, 2]), (2, [0, 1, 2, 3]), (-2, [-3, -2, -1, 0, 1]),
                                         (9, [0, 1, 2, 3, 4])])
def test_the_search_for_a_rate_goes_on_while_the_best_is_at_an_end(best, tried):
    found = best_of_powers(lambda power: {"validation": abs(power - best)}, TRIED)
    assert sorted(found) == tried and all(found[power] == {"validation": abs(power - best)} for power in tried)
    assert list(best_of_powers(lambda power: {"validation": 0.0}, (0,))) == [0]


def test_a_claim_that_lacks_what_it_is_measured_with_is_left_out_and_said_unless_it_is_the_only_one():
    def lacks():
        raise UserError("there is no such base", "data/bases/x")

    works, said = {"a": lambda: {"id": "a"}, "b": lacks, "c": lambda: {"id": "c"}}, []
    assert [found["id"] for found in runner.collected(works, said.append)] == ["a", "c"]
    assert said == ["  b is left out: data/bases/x: there is no such base"]
    with pytest.raises(UserError, match="no such base"):
        runner.collected({"b": lacks}, said.append)
    assert str(pickle.loads(pickle.dumps(UserError("it is", "here", 3)))) == "here, line 3: it is"  # from a worker


def test_workers_begin_at_both_ends():
    assert runner.from_both_ends(list("abcde")) == list("aebdc")
    assert runner.from_both_ends(list("abcd")) == list("adbc") and runner.from_both_ends(["a"]) == ["a"]


def test_a_changed_line_of_what_claims_share_makes_the_model_anew(tmp_path, monkeypatch):
    before, after = changed(tmp_path, monkeypatch, "lab/claims/instructed.py", "# another line\n")
    assert before != after
    before, after = changed(tmp_path, monkeypatch, "lab/claims/runner.py", "# another line\n")
    assert before == after
    imported.cache_clear()


def test_the_readme_counts_the_verdicts():
    found = Counter(read_json(path)["verdict"] for path in (PACKAGE.parent / "data" / "claims").glob("*/verdict.json"))
    names = {n: word for n, word in enumerate("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
                                              "nineteen twenty".split(), 10)}
    said = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    assert f"{names[found[HOLDS]]} hold, {names[found[PARTLY]]} hold in part" in said.replace("\n", " ")
