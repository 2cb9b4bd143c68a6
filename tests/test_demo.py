"""The main job at a size of seconds: every stage leaves files, and a fault costs nothing."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from minialign.heads import load_model
from minialign.lab.bases.make import Maker, load_base
from minialign.lab.claims.feedback import SIZES, settings
from minialign.lab.commands.demo import claim_folder, make_base
from minialign.lab.demo.evaluation import EvaluationConfig, blind_accuracies, evaluate
from minialign.lab.demo.pipeline import REWARD, RLHF, SAMPLING, Demo
from minialign.lab.demo.settings import FAST, DemoConfig
from minialign.lab.notebook import FEEDBACK
from minialign.lab.report import write_report
from minialign.runs.errors import UserError
from minialign.runs.files import read_json, read_jsonl, write_json
from minialign.runs.settings import to_dict
from minialign.runs.tensors import read_tensors

TINY = {"base": "none", "documents": 60, "demonstrations": 120, "judged": 64, "completions": 3, "prompts": 8,
        "evaluated": 6, "width": 16,
        "layers": 1, "heads": 1}
TINY |= {"pretrain_steps": 3, "sft_steps": 3, "reward_steps": 3, "ppo_updates": 2}


class Fault(Exception):
    """The laptop fell from the table."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run: its folder, its summary, and what it said."""
    folder, said = tmp_path_factory.mktemp("whole"), []
    return folder, Demo(folder, DemoConfig(**TINY), said.append).run(), said


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A folder with one base, made in seconds."""
    folder = tmp_path_factory.mktemp("bases")
    Maker(folder / "work", folder, 0, True, 1, print).make("decoder-0.1m")
    return folder


FROM_BASE = TINY | {"base": "decoder-0.1m"}


def test_the_job_starts_from_a_base_and_keeps_its_card(bases, tmp_path):
    summary = Demo(tmp_path, DemoConfig(**FROM_BASE), lambda line: None, bases).run()
    model, tokenizer, card = load_base(bases / "decoder-0.1m")
    kept = load_model(tmp_path / "1-pretrained")[0]
    assert all(p.equal(q) for p, q in zip(kept.parameters(), model.parameters()))
    assert json.loads((tmp_path / "card.json").read_text()) == card
    assert load_model(tmp_path / RLHF)[1].fingerprint() == tokenizer.fingerprint()
    assert 0 <= summary["reward_model"]["minimal_pairs"]["mean"] <= 1
    logged = read_jsonl(tmp_path / "1-pretrained" / "metrics.jsonl")
    assert [line["step"] for line in logged] == [look["step"] for look in card["curve"]]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "decoder-0.1m" in page and "honest under a heading" in page and "How it learned to read" in page
    assert "with one detail exchanged" in page


def test_without_the_shipped_bases_the_job_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="python -m minialign bases decoder-0.1m`, .*--from-scratch"):
        Demo(tmp_path, DemoConfig(**FROM_BASE), lambda line: None, tmp_path / "nothing").run()


def test_a_base_can_be_trained_first_in_the_run_folder(tmp_path, capsys):
    made = make_base(tmp_path, DemoConfig(**FROM_BASE), fast=True)
    assert load_base(made / "decoder-0.1m")[2]["name"] == "decoder-0.1m"
    assert "from nothing" in capsys.readouterr().out
    with pytest.raises(UserError, match="--base is 'none'"):
        make_base(tmp_path, DemoConfig(**TINY), fast=True)


def test_every_stage_leaves_files_to_read(whole):
    folder, _, said = whole
    for name in ("documents", "demonstrations", "judged", "prompts", "tests"):
        assert read_jsonl(folder / "data" / f"{name}.jsonl")
    for name in ("1-pretrained", "2-instructed", "4-reward", "5-rlhf"):
        files = {path.name for path in (folder / name).iterdir()}
        assert files >= {"config.json", "tokenizer.json", "metrics.jsonl", "model.safetensors"}
    assert read_jsonl(folder / "3-comparisons" / "comparisons.jsonl", ("prompt", "chosen", "rejected", "annotator"))
    assert len(read_jsonl(folder / "evaluation" / "samples.jsonl")) == 4 * TINY["evaluated"]
    seconds = json.loads((folder / "seconds.json").read_text())
    assert len(said) == 8 and set(seconds) >= {"world", "pretrain", "sft", "compare", "reward", "ppo", "evaluate"}


def test_the_summary_says_how_good_every_stage_is(whole):
    _, summary, _ = whole
    for stage in ("pretrained", "sft", "rlhf", "reference"):
        for aspect in ("helpful", "honest", "harmless", "gold"):
            found = summary["stages"][stage][aspect]
            assert 0 <= found["low"] <= found["mean"] <= found["high"] <= 1
        assert ("win_rate" in summary["stages"][stage]) == (stage != "reference")
    assert 0 <= summary["reward_model"]["accuracy"] <= 1 and isinstance(summary["kl"], float) and summary["seed"] == 0


def test_ppo_stands_beside_best_of_n_and_every_summary_of_it_beside_its_reward(whole):
    folder, summary, _ = whole
    rows = summary["best_of_n"]
    assert [row["name"] for row in rows] == ["RLHF", "best of 4", "best of 16"]
    assert {row["stories"] for row in rows} == {TINY["evaluated"]}
    assert rows[1]["kl"] == pytest.approx(0.6363, abs=1e-4) and rows[1]["score"]["mean"] <= rows[2]["score"]["mean"]
    for row in rows:
        for what in ("gold", "win_rate", "win_rate_at_equal_length"):
            assert 0 <= row[what]["low"] <= row[what]["mean"] <= row[what]["high"] <= 1
    samples = read_jsonl(folder / "evaluation" / "samples.jsonl")
    assert all(isinstance(s.get("proxy"), float) == (s["stage"] == "rlhf") for s in samples)
    bins = summary["reward_model"]["calibration"]
    assert sum(bin["count"] for bin in bins) > 0 and all(0.5 <= bin["predicted"] <= 1 for bin in bins)


def what_is_measured(folder):
    """What `evaluate` takes of a finished run, without its own folder."""
    job = Demo(folder, DemoConfig(**TINY), lambda text: None)
    made = job.run_first_half()
    models = {"pretrained": made.pretrained, "sft": made.instructed, "rlhf": load_model(folder / RLHF)[0]}
    config = EvaluationConfig(job.unit, SAMPLING, job.config.seed_of(6))
    return (made.tokenizer, models, load_model(folder / REWARD)[0], made.comparisons, made.tests), config


def test_the_row_of_rlhf_beside_best_of_n_says_what_its_stage_says_of_the_same_stories(whole, tmp_path, monkeypatch):
    def by_mood(person, story, answer, rival, rng):
        return float(rng.random() < 0.5)  # no tiny model ever wins before people

    monkeypatch.setattr("minialign.lab.demo.evaluation.preference", by_mood)
    measured, config = what_is_measured(whole[0])
    found = evaluate(tmp_path, *measured, config)
    (row, *_), stage = found["best_of_n"], found["stages"]["rlhf"]
    assert 0 < row["win_rate"]["mean"] < 1 and row["kl"] == pytest.approx(found["kl"])
    assert all(row[name] == stage[name] for name in ("gold", "win_rate", "win_rate_at_equal_length"))


def test_one_story_beside_best_of_n_is_refused_before_anything_is_trained():
    with pytest.raises(UserError, match="rivals is 1"):
        DemoConfig(rivals=1)


def test_without_best_of_n_everything_else_is_measured_as_before(whole, tmp_path):
    folder, _, _ = whole
    measured, config = what_is_measured(folder)
    found = evaluate(tmp_path, *measured, dataclasses.replace(config, rivals=0))
    kept = json.loads((folder / "evaluation" / "result.json").read_text(encoding="utf-8"))
    assert kept.pop("best_of_n") and json.loads(json.dumps(found)) == kept


@pytest.mark.parametrize("stage", ["pretrain", "compare", "train_reward", "train_policy"])
def test_after_a_fault_in_any_stage_the_same_call_ends_with_the_same_bits(stage, whole, tmp_path, monkeypatch):
    def fault(*arguments):
        raise Fault

    with monkeypatch.context() as patch, pytest.raises(Fault):
        patch.setattr(Demo, stage, fault)
        Demo(tmp_path, DemoConfig(**TINY), lambda line: None).run()
    summary = Demo(tmp_path, DemoConfig(**TINY), lambda line: None).run()
    assert summary == whole[1]
    for name in (REWARD, RLHF):
        ours, theirs = (read_tensors(folder / name / "model.safetensors")[0] for folder in (tmp_path, whole[0]))
        assert all(ours[key].equal(theirs[key]) for key in theirs)


def test_a_finished_run_is_not_done_again(whole):
    folder, summary, _ = whole
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")}
    assert Demo(folder, DemoConfig(**TINY), lambda line: None).run() == summary
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")} == before


def test_a_short_run_goes_over_each_rollout_once(whole):
    assert read_json(whole[0] / RLHF / "config.json")["settings"]["epochs"] == 1


def test_no_story_stands_in_two_stages(whole):
    folder, _, _ = whole
    stories = {name: {r["story"]["text"] for r in read_jsonl(folder / "data" / f"{name}.jsonl")}
               for name in ("demonstrations", "judged", "prompts", "tests")}
    for name, texts in stories.items():
        assert all(not texts & others for other, others in stories.items() if other != name)


def test_another_run_in_the_folder_is_left_alone(tmp_path):
    claim_folder(tmp_path, DemoConfig())
    claim_folder(tmp_path, DemoConfig())
    with pytest.raises(UserError, match="holds a run with beta = 0.1, now it is 0.2"):
        claim_folder(tmp_path, DemoConfig(beta=0.2))


def test_a_run_of_an_earlier_version_goes_on_where_later_settings_have_their_defaults(tmp_path):
    earlier = {key: value for key, value in to_dict(DemoConfig()).items() if key != "rivals"}
    write_json(tmp_path / "demo.json", earlier)
    with pytest.raises(UserError, match="holds a run with rivals = 150, now it is 0"):
        claim_folder(tmp_path, DemoConfig(rivals=0))
    claim_folder(tmp_path, DemoConfig())


def test_a_judge_that_does_not_read_learns_which_sign_is_better():
    long_is_better = [{"chosen": "a b c", "rejected": "a"}] * 3
    for chosen, rejected, accuracy in (("a b", "a", 1.0), ("a", "a b", 0.0), ("a", "b", 0.5)):
        assert blind_accuracies(long_is_better, [{"chosen": chosen, "rejected": rejected}]) == {"longer": accuracy}


def test_notebooks_say_every_size_themselves():
    """A new default of the main job changes nothing that they have measured."""
    sizes = {"base", "documents", "demonstrations", "judged", "completions", "prompts", "evaluated"}
    steps = {"sft_steps", "reward_steps", "ppo_updates"}
    assert sizes <= set(FEEDBACK) and steps <= set(FEEDBACK)


def test_claims_on_feedback_are_measured_on_the_main_job_itself():
    bench = SimpleNamespace(fast=False)
    assert settings(bench, "middle", 2) == DemoConfig(seed=2)
    assert [settings(bench, size, 0).base for size in SIZES] == list(SIZES.values())


def test_settings_are_counts_and_the_fast_ones_are_settings():
    assert DemoConfig(**FAST).base == DemoConfig().base
    bad = [{"judged": 0}, {"documents": 3}, {"evaluated": 1}, {"completions": 1}, {"completions": 99}, {"beta": -1.0},
           {"summaries": 2.0}, {"false": 2.0}, {"width": 7}]
    for change in bad:
        with pytest.raises(UserError, match=next(iter(change))):
            DemoConfig(**change)
    assert len({DemoConfig(seed=seed).seed_of(stage) for seed in range(3) for stage in range(1, 7)}) == 18
