"""The runner of the claims: what a cached model depends on."""

from pathlib import Path

import minialign
from minialign.claims import runner
from minialign.claims.runner import Bench, imported, reached, source_fingerprint

PACKAGE = Path(minialign.__file__).parent


def changed(tmp_path, monkeypatch, name, line):
    """A copy of the package in which a line was added to one file; the fingerprints of a claim before and after."""
    for path in PACKAGE.rglob("*"):
        if path.suffix in (".py", ".json"):
            copy = tmp_path / "minialign" / path.relative_to(PACKAGE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    monkeypatch.setattr(runner, "__file__", str(tmp_path / "minialign/claims/runner.py"))
    imported.cache_clear()
    before = source_fingerprint("minialign.claims.instructed")
    with open(tmp_path / "minialign" / name, "a", encoding="utf-8") as file:
        file.write(line)
    imported.cache_clear()
    return before, source_fingerprint("minialign.claims.instructed")


def test_a_cached_t0_depends_on_the_model_the_loop_the_recipe_and_the_wordings_but_not_on_other_chapters(tmp_path, monkeypatch):
    files = {path.relative_to(PACKAGE).as_posix() for path in reached("minialign.claims.instructed")}
    assert {"transformer.py", "training.py", "instruct/t0.py", "instruct_demo.py", "world/datasets.py", "tensors.py"} <= files
    assert not {name for name in files if name.startswith(("quant/", "peft/", "distill/", "pretrained/"))}
    before, after = changed(tmp_path, monkeypatch, "transformer.py", "# another line\n")
    assert before != after
    imported.cache_clear()


def test_a_changed_table_of_wordings_makes_the_model_anew_and_a_changed_claim_does_not(tmp_path, monkeypatch):
    before, after = changed(tmp_path / "a", monkeypatch, "world/prompts.json", " ")
    assert before != after
    before, after = changed(tmp_path / "b", monkeypatch, "claims/t0_unseen_tasks.py", "# another line\n")
    assert before == after
    before, after = changed(tmp_path / "c", monkeypatch, "quant/mappings.py", "# another line\n")
    assert before == after
    imported.cache_clear()


def test_relative_imports_are_found():
    assert "minialign.realdata.packages" in imported(PACKAGE / "realdata" / "texts.py")


def test_a_stage_is_made_once_and_again_for_another_setting(tmp_path):
    bench, made = Bench(tmp_path / "own", tmp_path / "cache"), []
    make = lambda folder: (folder.mkdir(parents=True, exist_ok=True), made.append(folder))  # noqa: E731
    assert bench.cached("stage", [1], make) == bench.cached("stage", [1], make) != bench.cached("stage", [2], make)
    assert len(made) == 2
