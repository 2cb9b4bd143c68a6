"""The notebooks that are committed, and the command that runs them."""

import json
import re
from pathlib import Path

import pytest

from minialign.__main__ import run
from minialign.batching import pad
from minialign.errors import UserError
from minialign.notebook import KEY, code_fingerprint, execute, picture, source
from minialign.plotting import figure
from minialign.ranking import option_logprobs
from minialign.rlhf.ppo import penalised_rewards

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def read(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


def written(path, *cells):
    made = [{"cell_type": "code", "execution_count": None, "id": f"c{i}", "metadata": {}, "outputs": [], "source": code} for i, code in enumerate(cells)]
    spec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    path.write_text(json.dumps({"cells": made, "metadata": {"kernelspec": spec}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_committed_notebook_shows_what_other_code_made(path):
    notebook = read(path)
    made = notebook["metadata"][KEY]
    assert made["executed"] == code_fingerprint(notebook), "run `python -m minialign notebooks` and commit what it writes"
    assert made["fast"] is False and made["seconds"] <= 180


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_short_whole_and_quiet(path):
    notebook = read(path)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(notebook["cells"]) <= 40 and notebook["cells"][0]["cell_type"] == "markdown"
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "run from the first cell to the last"
    for cell in code:
        assert not any(output["output_type"] == "error" or output.get("name") == "stderr" for output in cell["outputs"])
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|tmp|Users|work)/", text), "a path of somebody's machine"


def test_a_notebook_is_run_and_says_what_ran(tmp_path):
    path = written(tmp_path / "one.ipynb", "from minialign.notebook import FAST, source\nFAST", "print(2 + 3)")
    execute(path, tmp_path / "out" / "one.ipynb", fast=True)
    notebook = read(tmp_path / "out" / "one.ipynb")
    assert notebook["cells"][0]["outputs"][0]["data"]["text/plain"] == ["True"] and notebook["cells"][1]["outputs"][0]["text"] == ["5\n"]
    assert notebook["metadata"][KEY]["executed"] == code_fingerprint(read(path)) and notebook["metadata"][KEY]["fast"] is True
    changed = read(path)
    changed["cells"][1]["source"] = "print(2 + 4)"
    assert code_fingerprint(changed) != notebook["metadata"][KEY]["executed"]


@pytest.mark.parametrize("code, words", [("1 / 0", "a cell failed: ZeroDivisionError"), ("import warnings; warnings.warn('old')", "wrote to the error stream")])
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
    assert "\n    r\n" not in repr(source(penalised_rewards, doc=False)), "what stood before a raw docstring goes, too"


def test_the_file_of_a_decorated_function_is_its_own_and_not_the_decorators():
    assert repr(source(option_logprobs)).startswith("# minialign/ranking.py\n@torch.no_grad()")


def test_a_figure_becomes_a_picture(tmp_path):
    shown = picture(figure("x", "y")[0])
    assert shown._repr_png_().startswith(b"\x89PNG")
    (tmp_path / "f.png").write_bytes(shown._repr_png_())
    assert picture(tmp_path / "f.png")._repr_png_() == shown._repr_png_()
