"""The notebooks that are committed, and the command that runs them."""

import base64
import json
import random
import re
import sys
from pathlib import Path
from textwrap import fill

import pytest
import torch

from minialign.__main__ import run
from minialign.batching import pad
from minialign.lab.exercises.catalogue import of_notebook
from minialign.lab.notebook import KEY, code_fingerprint, execute, kept_claim, picture, source, toy_feedback, toy_policy
from minialign.lab.plotting import figure
from minialign.peft.lora import LoRALinear
from minialign.ranking import option_logprobs
from minialign.rlhf.ppo import penalised_rewards
from minialign.runs.errors import UserError
from minialign.world.stories import write_story

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def read(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


def written(path, *cells):
    made = [{"cell_type": "code", "execution_count": None, "id": f"c{i}", "metadata": {}, "outputs": [], "source": code}
            for i, code in enumerate(cells)]
    spec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    path.write_text(json.dumps({"cells": made, "metadata": {"kernelspec": spec}, "nbformat": 4, "nbformat_minor": 5}),
                    encoding="utf-8")
    return path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_committed_notebook_shows_what_other_code_made(path):
    notebook = read(path)
    made = notebook["metadata"][KEY]
    assert made["executed"] == code_fingerprint(notebook), "run `python -m minialign notebooks` and commit that"
    assert made["fast"] is False and made["seconds"] <= 180


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_short_whole_and_quiet(path):
    notebook = read(path)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(notebook["cells"]) <= 40 and notebook["cells"][0]["cell_type"] == "markdown"
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code)
        + 1)), "run from the first cell to the last"
    for cell in code:
        assert not any(output["output_type"] == "error" or output.get("name") == "stderr" for output in cell["outputs"])
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|tmp|Users|work)/", text), "a path of somebody's machine"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_picture_that_a_cell_draws_is_there_and_whole(path):
    for cell in read(path)["cells"]:
        if cell["cell_type"] != "code":
            continue
        drawn = [output["data"]["image/png"] for output in cell["outputs"] if "image/png" in output.get("data", {})]
        assert drawn or not re.search(r"^picture\(", cell["source"], re.MULTILINE), cell["source"][:80]
        for image in drawn:
            whole = base64.b64decode("".join(image).replace("\n", ""), validate=True)
            assert whole[:8] == b"\x89PNG\r\n\x1a\n" and whole[-8:-4] == b"IEND"


def section(notebook, heading):
    """The code cells of the section whose heading begins so; none when there is no such section."""
    found, inside = [], False
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            for line in cell["source"].splitlines():
                inside = line.startswith(f"## {heading}") if line.startswith("## ") else inside
        elif inside:
            found.append(cell)
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_ends_with_three_exercises_of_its_chapter_that_are_not_solved_yet(path):
    cells, own = section(read(path), "Exercises"), {exercise.name for exercise in of_notebook(int(path.stem[:2]))}
    assert any("listing(" in cell["source"] for cell in cells)
    asked = {name for cell in cells for name in re.findall(r"""\btask\(["'](\w+)""", cell["source"])}
    checked = [name for cell in cells for name in re.findall(r"""\bcheck\(["']?(\w+)""", cell["source"])]
    assert len(checked) >= 3 and set(checked) == asked <= own
    said = json.dumps([cell["outputs"] for cell in cells], ensure_ascii=False)
    assert said.count("**not yet.**") == len(checked), "the cells are the reader's to fill in"
    assert "**right.**" not in said


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_can_be_modified_and_draws_what_changed(path):
    cells = section(read(path), "Modify and retrain")
    settings = [cell for cell in cells if re.search(r"^MY_\w+", cell["source"], re.MULTILINE)]
    assert settings, "the settings worth changing stand in capitals"
    drawn = [output for cell in cells for output in cell["outputs"] if "image/png" in output.get("data", {})]
    assert drawn, "what changed against the recorded default is plotted"


def test_all_notebooks_find_the_project_by_the_same_line_before_they_import_from_it():
    found = set()
    for path in NOTEBOOKS:
        code = "\n".join(cell["source"] for cell in read(path)["cells"] if cell["cell_type"] == "code").splitlines()
        places = [i for i, line in enumerate(code) if line.startswith("sys.path.insert(")]
        assert places and not any("minialign" in line for line in code[: places[0]]), path.stem
        found.add(code[places[0]])
    assert len(found) == 1 and "pip install -r requirements.txt" in found.pop()


def cell_with(words, number):
    """The one code cell of a notebook that holds these words."""
    (cell,) = [cell for cell in read(NOTEBOOKS[number])["cells"]
               if cell["cell_type"] == "code" and words in cell["source"]]
    return cell


def test_the_first_gold_score_is_of_an_example_that_teaches(capsys):
    exec(cell_with("show_gold", 0)["source"], {"random": random, "fill": fill, "write_story": write_story})  # noqa: S102
    said = capsys.readouterr().out
    person, false, rude = ([float(x) for x in numbers] for numbers in
                           re.findall(r"helpful (\S+)  honest (\S+)  harmless (\S+)  gold (\S+)", said))
    assert person[:3] == pytest.approx([1, 1, 1], abs=0.05), "a person's summary is a good one"
    assert false[1] < 0.7 and rude[:3] == pytest.approx([1, 1, 0], abs=0.15), "one fault each"
    assert false[3] < person[3] - 0.2 and rude[3] < person[3] - 0.2


def test_the_cache_is_shown_on_a_text_that_is_long_enough():
    *_, output = cell_with("stop_early", 1)["outputs"]
    saved = [float(times) for times in re.findall(r"([\d.]+) times as fast", "".join(output["text"]))]
    assert len(saved) == 3 and saved[-1] == max(saved) > 1.5


def test_a_paper_s_equation_stands_in_one_section_wherever_it_is_cited():
    texts = [path.read_text(encoding="utf-8") for path in (NOTEBOOKS[0].parents[1] / "minialign").rglob("*.py")]
    texts += [cell["source"] for path in NOTEBOOKS for cell in read(path)["cells"]]
    cited, sections = r"(\w+(?: et al\.)? \d{4})[^,;§\n]{0,30}, (§[\d.]*\d), Eqs?\. (\d+)", {}
    for paper, section, equation in re.findall(cited, "\n".join(texts)):
        sections.setdefault((paper, equation), set()).add(section)
    assert len(sections) > 10 and {key: found for key, found in sections.items() if len(found) > 1} == {}


def test_a_notebook_is_run_and_says_what_ran(tmp_path):
    path = written(tmp_path / "one.ipynb", "from minialign.lab.notebook import FAST, source\nFAST", "print(2 + 3)")
    execute(path, tmp_path / "out" / "one.ipynb", fast=True)
    notebook = read(tmp_path / "out" / "one.ipynb")
    (shown,), (printed,) = (cell["outputs"] for cell in notebook["cells"])
    assert shown["data"]["text/plain"] == ["True"] and printed["text"] == ["5\n"]
    made = notebook["metadata"][KEY]
    assert made["executed"] == code_fingerprint(read(path)) and made["fast"] is True
    # the kernel alone needs a second to import the package
    assert sys.platform == "win32" or made["processor_seconds"] >= 1
    changed = read(path)
    changed["cells"][1]["source"] = "print(2 + 4)"
    assert code_fingerprint(changed) != made["executed"]


def test_what_is_printed_behind_a_picture_stays_behind_it_and_what_comes_in_a_row_is_one(tmp_path):
    path = written(tmp_path / "one.ipynb", "print('a', flush=True)\nprint('b', flush=True)\ndisplay('picture')\n"
                                           "print('c', flush=True)")
    execute(path, path, fast=True)
    (cell,) = read(path)["cells"]
    assert [output["output_type"] for output in cell["outputs"]] == ["stream", "display_data", "stream"]
    assert cell["outputs"][0]["text"] == ["a\n", "b\n"] and cell["outputs"][2]["text"] == ["c\n"]


@pytest.mark.parametrize("code, words", [("1 / 0", "a cell failed: ZeroDivisionError"),
                                         ("import warnings; warnings.warn('old')", "wrote to the error stream")])
def test_a_cell_that_fails_or_warns_is_an_error_and_leaves_the_file(code, words, tmp_path):
    path = written(tmp_path / "bad.ipynb", code)
    before = path.read_bytes()
    with pytest.raises(UserError, match=words):
        execute(path, path, fast=False)
    assert path.read_bytes() == before


def test_bad_input_is_said_in_one_line(tmp_path, capsys):
    written(tmp_path / "01_one.ipynb", "1")
    for arguments, words in (
        (["--folder", str(tmp_path / "none")], "there are no notebooks here"),
        (["--folder", str(tmp_path), "07"], "no notebook's name begins with '07'; there are 01_one"),
        (["--folder", str(tmp_path), "--fast"], "give --out"),
    ):
        assert run(["notebooks", *arguments]) == 2
        assert words in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_source_is_what_stands_in_the_file():
    shown = source(pad)
    assert "# minialign/batching.py" in repr(shown) and "def pad(" in shown._repr_markdown_() and '"""' in repr(shown)
    short = repr(source(pad, doc=False))
    assert '"""' not in short and "def pad(" in short and "return" in short
    assert "super().__init__()" in repr(source(LoRALinear.__init__, doc=False)), "not the docstring of a class above"
    assert "\n    r\n" not in repr(source(penalised_rewards, doc=False)), "what stood before a raw docstring goes, too"


def test_the_file_of_a_decorated_function_is_its_own_and_not_the_decorators():
    assert repr(source(option_logprobs)).startswith("# minialign/ranking.py\n@torch.no_grad()")


def test_a_figure_becomes_a_picture(tmp_path):
    shown = picture(figure("x", "y")[0])
    assert shown._repr_png_().startswith(b"\x89PNG")
    (tmp_path / "f.png").write_bytes(shown._repr_png_())
    assert picture(tmp_path / "f.png")._repr_png_() == shown._repr_png_()


def test_a_toy_for_the_notebooks_on_feedback_is_made_once_and_then_read(tmp_path):
    tiny = {"base": "decoder-0.1m", "documents": 50, "demonstrations": 96, "judged": 64, "prompts": 4, "evaluated": 2,
            "sft_steps": 1, "reward_steps": 1, "ppo_updates": 1}
    job, made = toy_feedback(tmp_path, **tiny)
    kept = {path: path.stat().st_mtime_ns for path in job.folder.rglob("*") if path.is_file()
            and path.name != "seconds.json"}
    assert kept and made.comparisons and len(made.practice) == 4 and made.instructed.config.width == 48
    again, read = toy_feedback(tmp_path, **tiny)
    assert again.folder == job.folder and read.comparisons == made.comparisons and read.tests == made.tests
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "nothing was made again"
    reward = job.train_reward(made.tokenizer, made.instructed, made.comparisons)
    policy, log = toy_policy(job, made, reward, 0.0)
    read, same = toy_policy(again, made, reward, 0.0)
    assert same == log and len(log) == 1, "trained once for each price"
    assert {"score", "kl", "gold", "held_out_gold"} <= log[0].keys()
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), read.parameters()))
    assert len(toy_policy(job, made, reward, 0.0, updates=2)[1]) == 2, "at the same price for longer: another policy"
    other, _ = toy_feedback(tmp_path, **tiny | {"sft_steps": 2})
    assert other.folder != job.folder, "another setting is another toy"


def test_what_a_claim_found_is_shown_with_its_figure_and_a_missing_one_says_how_to_make_it(tmp_path):
    said, shown = kept_claim("over-optimisation", tmp_path)
    assert "python -m minialign claims over-optimisation" in said and shown is None
    found = {"id": "x", "claim": "It runs away.", "verdict": "holds partly", "why": "gold falls by 0.05", "seeds": 3,
             "checks": {"gold falls": True, "far": False, "for good": False}}
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "verdict.json").write_text(json.dumps(found), encoding="utf-8")
    assert kept_claim("x", tmp_path) == ("It runs away.\nx, 3 seeds: holds partly. gold falls by 0.05\n"
                                           "Not shown: far; for good.", None)
    (tmp_path / "x" / "figure.png").write_bytes(picture(figure("x", "y")[0]).bytes)
    assert kept_claim("x", tmp_path)[1]._repr_png_().startswith(b"\x89PNG")
