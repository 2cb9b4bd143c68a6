"""Run folders: a fault leaves the old file or the new one, what does not belong together is refused, and nobody's work
is overwritten."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import TINY, build

from minialign.heads import LanguageModel, ScalarModel, describe_model, load_model, same_tokenizer
from minialign.rlhf.ppo import PPOConfig
from minialign.runs import run_folder as checkpoints
from minialign.runs.errors import UserError
from minialign.runs.files import read_json, write_atomic, write_json
from minialign.runs.run_folder import RunFolder, flatten
from minialign.runs.settings import from_dict, to_dict
from minialign.runs.tensors import load_into, read_tensors, tensors_of
from minialign.tokenizer import train_tokenizer
from minialign.training import adamw
from minialign.transformer import TransformerConfig


def contents(folder):
    """Every file below a folder with its bytes."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fails(number=errno.ENOSPC):
    def call(*arguments):
        raise OSError(number, os.strerror(number))

    return call


@pytest.fixture
def finished(tmp_path, tokenizer):
    """A finished run of the tiny decoder, and its model."""
    model, run = build(seed=5), RunFolder(tmp_path / "run")
    with run.locked():
        run.begin({**describe_model(model), "stage": "pretrain", "training": {"steps": 3, "learning_rate": 0.1}},
                  tokenizer)
        run.finish(model, perplexity=7.5)
    return tmp_path / "run", model


# writing


def test_a_file_is_written_whole_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "deep" / "er" / "file.txt"
    for content in ("first", b"\x00\xff", "naïve 猫"):
        write_atomic(path, content)
        assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert list(contents(tmp_path)) == [path.relative_to(tmp_path)]


@pytest.mark.parametrize("place", ["fsync", "replace"])
@pytest.mark.parametrize("number, remedy", [(errno.ENOSPC, "free some space"), (errno.EDQUOT, "free some space"),
                                            (errno.EACCES, "choose another --out")])
def test_a_write_that_fails_is_one_line_and_leaves_the_old_file_and_nothing_else(place, number, remedy, tmp_path,
        monkeypatch):
    path = tmp_path / "file.txt"
    write_atomic(path, "old")
    monkeypatch.setattr(checkpoints.os, place, fails(number))
    with pytest.raises(UserError) as error:
        write_atomic(path, "new")
    monkeypatch.undo()
    assert str(path) in str(error.value) and remedy in str(error.value) and "\n" not in str(error.value)
    assert contents(tmp_path) == {path.relative_to(tmp_path): b"old"}


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot be written"):
        write_atomic(tmp_path / "file" / "below.txt", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_atomic(tmp_path / "folder", "text")
    assert contents(tmp_path) == {(tmp_path / "file").relative_to(tmp_path): b"mine"}


def test_text_that_utf_8_cannot_hold_leaves_nothing_behind(tmp_path):
    with pytest.raises((UserError, UnicodeError)):
        write_atomic(tmp_path / "file.txt", "half a character: \ud83d")
    assert contents(tmp_path) == {}


def test_a_file_system_that_cannot_sync_folders_is_no_obstacle(tmp_path, monkeypatch):
    sync, calls = os.fsync, []

    def files_only(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(checkpoints.os, "fsync", files_only)
    write_atomic(tmp_path / "file.txt", "text")
    assert contents(tmp_path) == {(tmp_path / "file.txt").relative_to(tmp_path): b"text"}


def test_a_checkpoint_that_finds_the_disk_full_leaves_the_one_before(tmp_path, monkeypatch):
    run, model = RunFolder(tmp_path), build()
    run.save_checkpoint({"model": model}, {}, {}, {"step": 1})
    before = contents(tmp_path)
    monkeypatch.setattr(checkpoints.os, "fsync", fails())
    for write in (lambda: run.save_checkpoint({"model": model}, {}, {}, {"step": 2}), lambda: run.finish(model)):
        with pytest.raises(UserError, match="free some space"):
            write()
    assert contents(tmp_path) == before and not run.finished


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_metrics_that_find_the_disk_full_are_one_line_too(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match="free some space"):
        RunFolder(tmp_path).log({"step": 1})


def test_json_is_written_for_people_and_read_back(tmp_path):
    value = {"name": "naïve", "shape": [1, 2], "deep": {"rate": 0.1}}
    write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == value and "naïve" in (tmp_path
        / "file.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("content, message", [(b'{"a": 1,\n"b": }', "line 2: not JSON"), (b"", "the file is empty"),
                                              (b"\xff\xfe{", ""), (None, "no such file")])
def test_broken_json_is_an_error_that_names_the_place(content, message, tmp_path):
    if content is not None:
        (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(UserError, match=f"file.json.*{message}"):
        read_json(tmp_path / "file.json")


# the lock

HOLD = ("import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); print('held', "
        "flush=True); sys.stdin.read()")


def test_a_folder_that_another_process_holds_is_refused_until_that_process_dies(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / ".lock"], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="in use by another process"), RunFolder(tmp_path).locked():
            pass
    finally:
        holder.kill()
        holder.communicate()
    with RunFolder(tmp_path).locked():
        pass


def test_under_torchrun_only_the_first_process_keeps_the_folder_and_writes(tmp_path, tokenizer, monkeypatch):
    with RunFolder(tmp_path).locked():
        monkeypatch.setenv("RANK", "1")
        with RunFolder(tmp_path).locked():
            RunFolder(tmp_path).begin({"what": "language-model"}, tokenizer)
        assert not (tmp_path / "config.json").exists()
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(UserError, match="in use"), RunFolder(tmp_path).locked():
            pass


def test_a_folder_cannot_be_held_twice_and_is_free_again_after_an_error(tmp_path):
    run = RunFolder(tmp_path / "a" / "b")
    with run.locked(), pytest.raises(UserError, match="in use by another process"), RunFolder(run.path).locked():
        pass
    with pytest.raises(ValueError), run.locked():
        raise ValueError
    with run.locked():
        pass


def test_a_file_where_the_folder_should_be_is_an_error(tmp_path):
    (tmp_path / "run").write_text("mine")
    for path in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(UserError,
                           match="not a folder that can be written; choose another --out"), RunFolder(path).locked():
            pass
    assert (tmp_path / "run").read_text() == "mine"


# what a folder holds


def test_the_same_command_finds_its_run_again_and_writes_nothing(tmp_path, tokenizer):
    run, config = RunFolder(tmp_path), {"what": "language-model", "training":
                                        {"learning_rate": 1e-3, "betas": (0.9, 0.98)}, "note": None}
    run.begin(config, tokenizer)
    before = contents(tmp_path)
    run.begin(config, tokenizer)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "change, named",
    [
        ({"training": {"steps": 10, "learning_rate": 0.2}}, "training.learning_rate is 0.1 there and 0.2 now"),
        ({"training": {"steps": 10}}, "training.learning_rate is 0.1 there and None now"),
        ({"stage": "sft"}, "stage is 'pretrain' there and 'sft' now"),
        ({"more": 1}, "more is None there and 1 now"),
    ],
)
def test_another_setting_in_the_same_folder_is_refused_by_name_and_nothing_is_overwritten(change, named, tmp_path,
        tokenizer):
    run, config = RunFolder(tmp_path), {"stage": "pretrain", "training": {"steps": 10, "learning_rate": 0.1}}
    run.begin(config, tokenizer)
    before = contents(tmp_path)
    with pytest.raises(UserError) as error:
        run.begin({**config, **change}, tokenizer)
    assert named in str(error.value) and "choose another --out" in str(error.value) and contents(tmp_path) == before


def test_another_tokenizer_in_the_same_folder_is_refused(tmp_path, tokenizer):
    run = RunFolder(tmp_path)
    run.begin({"stage": "pretrain"}, tokenizer)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="tokenizer is"):
        run.begin({"stage": "pretrain"}, train_tokenizer(["something else"], 300))
    assert contents(tmp_path) == before


def test_nested_settings_are_named_with_dots():
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}


def test_a_run_is_finished_when_its_model_is_there_and_remembers_its_facts(finished):
    folder, _ = finished
    assert RunFolder(folder).finished and RunFolder(folder).facts() == {"perplexity": 7.5}
    assert not RunFolder(folder.parent / "other").finished


def test_metrics_are_appended_read_and_forgotten_after_a_step(tmp_path):
    run = RunFolder(tmp_path / "new")  # a folder is made when needed
    for step in range(1, 5):
        run.log({"step": step, "loss": 1 / step})
    assert [record["step"] for record in run.metrics()] == [1, 2, 3, 4] and run.metrics()[2]["loss"] == 1 / 3
    run.forget_after(2)
    assert [record["step"] for record in run.metrics()] == [1, 2]
    assert RunFolder(tmp_path / "none").metrics() == []


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path):
    run = RunFolder(tmp_path)
    run.log({"step": 1})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    second = b'{"step": 2, "loss": 0.5}'
    for cut in range(len(second)):
        (tmp_path / "metrics.jsonl").write_bytes(whole + second[:cut])
        assert run.metrics() == [{"step": 1}], cut


# checkpoints


def test_a_checkpoint_brings_back_weights_optimizers_generators_and_state(tmp_path, tokens):
    run, model, generator = RunFolder(tmp_path), build(positions="learned"), torch.Generator().manual_seed(1)
    optimizer = adamw(model, 1e-2, 0.1)
    model(tokens).square().mean().backward()
    optimizer.step()
    torch.rand(7, generator=generator)
    state = {"step": 3, "best": float("inf"), "beta": 0.1 + 0.2}
    run.save_checkpoint({"model": model}, {"adamw": optimizer}, {"rollout": generator}, state)

    twin, dice = build(seed=9, positions="learned"), torch.Generator()
    other = adamw(twin, 1e-2, 0.1)
    assert run.load_checkpoint({"model": twin}, {"adamw": other}, {"rollout": dice}) == state
    assert torch.equal(torch.rand(5, generator=dice), torch.rand(5, generator=generator))
    for trained, its_optimizer in ((model, optimizer), (twin, other)):
        its_optimizer.zero_grad()
        trained(tokens).square().mean().backward()
        its_optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))


def test_a_checkpoint_without_the_state_of_a_generator_is_an_error_that_names_it(tmp_path):
    run, model = RunFolder(tmp_path), build()
    run.save_checkpoint({"model": model}, {}, {}, {"step": 1})
    with pytest.raises(UserError, match="no state of the generator 'dropout'"):
        run.load_checkpoint({"model": model}, {}, {"dropout": torch.Generator()})


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(tmp_path):
    assert RunFolder(tmp_path).load_checkpoint({"model": build()}, {}, {}) is None


def test_a_checkpoint_of_another_model_is_refused_and_the_model_stays_as_it_was(tmp_path):
    run = RunFolder(tmp_path)
    for other, message in ((build(width=64), "has shape"), (build(layers=3), "another kind of model"),
                           (build(positions="learned"), "another kind")):
        run.save_checkpoint({"model": other}, {}, {}, {"step": 1})
        model = build()
        with pytest.raises(UserError, match=message):
            run.load_checkpoint({"model": model}, {}, {})
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), build().parameters()))


def test_loading_a_part_or_too_much_is_refused(tmp_path):
    whole = {name: t.detach() + 1 for name, t in tensors_of(build()).items()}
    for tensors in (dict(list(whole.items())[1:]), {**whole, "more": torch.zeros(1)}):
        model = build()
        with pytest.raises(UserError, match="is only in one of the two"):
            load_into(model, tensors, tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), build().parameters()))


def test_a_tensor_with_two_names_is_stored_once():
    assert [name for name in tensors_of(build(kind="encoder-decoder"))
            if "token_embedding" in name] == ["body.encoder.token_embedding.weight"]


# models


@pytest.mark.parametrize("kind", ["decoder", "encoder", "encoder-decoder"])
@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_a_language_model_comes_back_with_the_same_outputs(kind, positions, tmp_path, tokenizer, tokens):
    model, run = build(seed=3, kind=kind, positions=positions), RunFolder(tmp_path)
    run.begin(describe_model(model), tokenizer)
    run.finish(model.train())
    again, its_tokenizer = load_model(tmp_path, "language-model")
    arguments = (tokens, tokens) if kind == "encoder-decoder" else (tokens,)
    assert isinstance(again, LanguageModel) and not again.training and again.config == model.config
    assert torch.equal(again(*arguments), model.eval()(*arguments))
    assert its_tokenizer.fingerprint() == tokenizer.fingerprint()


def test_a_scalar_model_comes_back_with_the_same_outputs(tmp_path, tokenizer, tokens):
    model, run = ScalarModel(build(seed=3).body, seed=4), RunFolder(tmp_path)
    model.head.bias.data.fill_(0.7)
    run.begin(describe_model(model), tokenizer)
    run.finish(model)
    again, _ = load_model(tmp_path, "scalar-model")
    assert isinstance(again, ScalarModel) and torch.equal(again(tokens), model(tokens))


def test_a_model_of_another_kind_than_is_needed_is_refused(finished):
    with pytest.raises(UserError, match="holds a language-model, and a scalar-model is needed here"):
        load_model(finished[0], "scalar-model")


def test_a_folder_that_is_not_there_or_not_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no such run folder; make one with"):
        load_model(tmp_path / "none")
    with pytest.raises(UserError, match="config.json: there is no such file"):
        load_model(tmp_path)


def test_an_unfinished_run_is_refused_with_what_to_do(tmp_path, tokenizer):
    model, run = build(), RunFolder(tmp_path)
    run.begin(describe_model(model), tokenizer)
    run.save_checkpoint({"model": model}, {}, {}, {"step": 1})
    with pytest.raises(UserError, match="has not finished; run its command again"):
        load_model(tmp_path)


def test_a_file_that_was_cut_short_is_refused(finished):
    folder, _ = finished
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="model.safetensors"):
            load_model(folder)
    path.write_bytes(whole + b"more")
    with pytest.raises(UserError, match="model.safetensors"):
        load_model(folder)


def test_a_header_that_was_altered_is_refused_or_changes_nothing(finished, tokens):
    folder, model = finished
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for place in range(0, header, 41):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])
        try:
            again, _ = load_model(folder)
            assert torch.equal(again(tokens), model(tokens)), place
        except UserError:
            refused += 1
    assert refused > 20


def test_weights_that_were_altered_are_refused(finished):
    folder, _ = finished
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10] + bytes([whole[-10] ^ 64]) + whole[-9:])
    with pytest.raises(UserError, match="model.safetensors"):
        load_model(folder)


def test_a_missing_or_wrong_file_among_the_weights_is_refused(finished, tmp_path):
    folder, _ = finished
    (tmp_path / "text").write_text("hello")
    for path in (tmp_path / "none", tmp_path / "text", tmp_path):
        with pytest.raises(UserError):
            read_tensors(path)


def test_another_shape_than_the_weights_have_is_refused(finished):
    folder, _ = finished
    config = read_json(folder / "config.json")
    for change, message in (({"width": 64}, "has shape"), ({"layers": 1}, "another kind of model"),
                            ({"positions": "learned"}, "another kind")):
        write_json(folder / "config.json", {**config, "model": {**config["model"], **change}})
        with pytest.raises(UserError, match=message):
            load_model(folder)


def test_another_tokenizer_than_the_model_s_is_refused(finished):
    folder, _ = finished
    write_atomic(folder / "tokenizer.json", train_tokenizer(["other words"], 300).to_json())
    with pytest.raises(UserError, match="tokenizer.json is not the one that this model was trained with"):
        load_model(folder)


SHAPE = to_dict(TINY)


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"3",
        b"\xff{}",
        {"model": None},
        {"model": []},
        {"model": {**SHAPE, "width": "32"}},
        {"model": {**SHAPE, "layers": 2.5}},
        {"model": {**SHAPE, "heads": None}},
        {"model": {**SHAPE, "speed": 1}},
        {"model": {k: v for k, v in SHAPE.items() if k != "vocabulary"}},
        {"what": "poem"},
    ],
    ids=lambda content: str(content)[:12] if isinstance(content, bytes) else next(iter(content)),
)
def test_a_config_that_was_edited_wrongly_is_an_error_and_no_crash(content, finished):
    folder, _ = finished
    config = read_json(folder / "config.json")
    if isinstance(content, bytes):
        (folder / "config.json").write_bytes(content)
    else:
        write_json(folder / "config.json", {k: v for k, v in {**config, **content}.items() if v is not None})
    with pytest.raises(UserError):
        load_model(folder)


def test_reading_a_run_changes_nothing_in_it(finished):
    folder, model = finished
    before = contents(folder)
    again, _ = load_model(folder)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.add_(1.0)
    assert contents(folder) == before


def test_models_that_do_not_share_a_tokenizer_are_refused_together(tokenizer):
    same_tokenizer(("runs/a", tokenizer), ("runs/b", tokenizer))
    with pytest.raises(UserError, match="runs/b"):
        same_tokenizer(("runs/a", train_tokenizer(["x"], 300)), ("runs/b", tokenizer))


def test_the_description_of_a_model_builds_it_again():
    for model in (build(layers=1), build(layers=1, short_convolution=4)):
        described = describe_model(model)
        assert described["what"] == "language-model" and json.loads(json.dumps(described)) == described
        assert from_dict(TransformerConfig, described["model"]) == model.config
    assert "short_convolution" not in describe_model(build())["model"]  # as in run folders from before there was one
    assert describe_model(ScalarModel(build().body))["what"] == "scalar-model"


def test_settings_of_earlier_versions_are_read_under_their_names_of_today(tmp_path, tokenizer):
    assert from_dict(PPOConfig, {"answers": 3, "minibatch": 3}).completions == 3
    run = RunFolder(tmp_path / "run")
    run.begin({"what": "x", "ppo": {"answers": 4}}, tokenizer)
    run.begin({"what": "x", "ppo": {"completions": 4}}, tokenizer)  # the same run: no error
    with pytest.raises(UserError, match="ppo.completions is 4 there and 5 now"):
        run.begin({"what": "x", "ppo": {"completions": 5}}, tokenizer)


def test_a_checkpoint_beside_a_finished_model_goes_with_the_next_start(tmp_path):
    """A kill may come between the two lines of `finish`."""
    run = RunFolder(tmp_path)
    for name in ("model.safetensors", "checkpoint.safetensors"):
        (tmp_path / name).write_bytes(b"")
    with run.locked():
        pass
    assert not (tmp_path / "checkpoint.safetensors").exists() and run.finished
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "checkpoint.safetensors").write_bytes(b"")
    with run.locked():
        pass
    assert (tmp_path / "checkpoint.safetensors").exists()
