"""A training that is killed at every line that writes, and one that two processes share: no fault changes a bit."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_training import run_stage

from minialign.runs.run_folder import RunFolder
from minialign.runs.tensors import read_tensors

TESTS = Path(__file__).parents[1]  # where test_training.py is

# kill -9

KILLED = '''
"""Train in one process after the other; kill each at another line, and run the same command again."""
import json, os, signal, sys
from pathlib import Path
import torch

torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from test_training import SHAPE, TEN, ragged_rows
from minialign import training
from minialign.runs import early_stop, files, resumable, run_folder
from minialign.heads import describe_model
from minialign.runs.run_folder import RunFolder
from minialign.heads import LanguageModel
from minialign.pretrain.causal_lm import LabelledRows, next_token_loss
from minialign.tokenizer import train_tokenizer
from minialign.training import TrainingConfig, train

root, tokenizer = Path(sys.argv[1]), train_tokenizer([], 276)
config = TrainingConfig(**TEN | {"steps": 7, "checkpoint_every": 2, "validate_every": 3, "patience": 2})
training.adamw(LanguageModel(SHAPE), 1e-3, 0.0).step()  # imports that would cost each child a second otherwise
watched = {module.__file__ for module in (early_stop, files, resumable, run_folder, training)}

def command(folder):
    run = RunFolder(folder)
    with run.locked():
        model = LanguageModel(SHAPE)
        run.begin({**describe_model(model), "stage": "test"}, tokenizer)
        if not run.finished:
            validate = lambda model: {"validation": float(model.body.norm.weight.detach().sum())}
            train(model, LabelledRows(ragged_rows(), 6, 0), next_token_loss, config, run, validate)

def in_a_process(folder, kill_at=None, places=None):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    count = [0]
    def line(frame, event, argument):
        if event == "line":
            if places is not None:
                places.append([frame.f_code.co_name, frame.f_lineno])
            if count[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            count[0] += 1
        return line
    try:
        if places is not None or kill_at is not None:
            sys.settrace(lambda frame, event, argument: line if frame.f_code.co_filename in watched else None)
        sys.stderr = open(os.devnull, "w")
        command(folder)
        sys.settrace(None)
        if places is not None:
            (root / "places.json").write_text(json.dumps(places))
        os._exit(0)
    except BaseException as error:
        (root / "error.txt").write_text(repr(error))
        os._exit(1)

def left(folder):
    metrics = [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in RunFolder(folder).metrics()]
    return (folder / "model.safetensors").read_bytes(), metrics

assert in_a_process(root / "whole", places=[]) == 0, (root / "error.txt").read_text()
places = json.loads((root / "places.json").read_text())
model, metrics = left(root / "whole")
writes = {'write_atomic', 'save_checkpoint', 'finish', 'log', 'begin', 'look', 'restore', 'forget_after', 'done'}
moments = {}  # one of every line that writes something, early for some, late for others; of the loop a few
for i, (function, number) in enumerate(places):
    if function in writes:
        moments.setdefault((function, number), []).append(i)
chosen = {whole[len(whole) * (number % 3) // 3] for (_, number), whole in moments.items()}
moments = sorted(chosen | {len(places) * k // 5 for k in range(5)})
for moment in moments:
    folder = root / str(moment)
    killed = in_a_process(folder, kill_at=moment)
    again = in_a_process(folder)
    report = {"place": places[moment], "killed": os.WIFSIGNALED(killed), "went_on": again == 0, "same_model": False}
    if again == 0:
        bits, lines = left(folder)
        report |= {"same_model": bits == model, "same_metrics": lines == metrics}
        report |= {"left": [f.name for f in folder.rglob("*.tmp")]}
    else:
        report["error"] = (root / "error.txt").read_text()
    print(json.dumps(report))
'''


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What was left of runs that were killed at one line each and started again."""
    if not hasattr(os, "fork"):
        pytest.skip("needs a system with fork")
    folder = tmp_path_factory.mktemp("killed")
    (folder / "killed.py").write_text(KILLED, encoding="utf-8")
    done = subprocess.run([sys.executable, folder / "killed.py", folder, TESTS], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_kill_and_restart_ends_with_the_same_bits(killed):
    assert len(killed) > 20 and all(report["killed"] for report in killed)
    assert [report for report in killed if not report["same_model"]] == []


def test_kill_and_restart_leaves_one_line_of_metrics_a_step(killed):
    assert [report["place"] for report in killed if not report["same_metrics"]] == []


def test_kill_and_restart_leaves_no_temporary_file_for_ever(killed):
    assert [(report["place"], report["left"]) for report in killed if report["left"]] == []


# several processes

TOGETHER = '''
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_training import run_stage
run_stage(Path(sys.argv[1]))
'''


def start_two(folder, port, program=TOGETHER, **changes):
    """Two processes as torchrun starts them; their exit codes and what they wrote to stderr."""
    (folder / "together.py").write_text(program, encoding="utf-8")
    address = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
               "OMP_NUM_THREADS": "1"} | changes
    arguments = [sys.executable, folder / "together.py", folder / "two", TESTS]
    processes = [subprocess.Popen(arguments, env=os.environ | address | {"RANK": str(rank)}, stderr=subprocess.PIPE,
                                  text=True) for rank in range(2)]
    try:
        errors = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], errors


@pytest.fixture
def port():
    """A free one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_two_processes_stop_together_when_one_is_told_to_and_go_on_as_one(tmp_path, port):
    told = TOGETHER.replace("run_stage(Path(sys.argv[1]))", STOP_RANK_1)
    codes, errors = start_two(tmp_path, port, told)
    assert codes == [7, 7], errors
    assert [r["step"] for r in RunFolder(tmp_path / "two").metrics()] == [1, 2, 3, 4]


STOP_RANK_1 = """
import os, signal
from minialign.runs.resumable import Stopped
from test_training import next_token_loss
steps = []
def loss(model, batch):
    steps.append(batch)
    if os.environ["RANK"] == "1" and len(steps) == 4:
        os.kill(os.getpid(), signal.SIGINT)
    return next_token_loss(model, batch)
try:
    run_stage(Path(sys.argv[1]), loss)
except Stopped:
    sys.exit(7)
"""


def test_fewer_rows_than_processes_are_an_error_in_each_of_them(tmp_path, port):
    codes, errors = start_two(tmp_path, port, TOGETHER.replace("run_stage(Path(sys.argv[1]))",
        "run_stage(Path(sys.argv[1]), batch=1)"))
    assert codes == [1, 1] and all("cannot be shared by 2 processes" in error for error in errors)


def test_two_processes_train_the_same_model_as_one(tmp_path, port):
    codes, errors = start_two(tmp_path, port)
    assert codes == [0, 0], errors
    run_stage(tmp_path / "one", accumulation=2)
    one, two = (read_tensors(tmp_path / name / "model.safetensors")[0] for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=2e-4)
    alone, together = (RunFolder(tmp_path / name).metrics() for name in ("one", "two"))
    assert [r["step"] for r in together] == list(range(1, 11))
    assert [r["loss"] for r in together] == pytest.approx([r["loss"] for r in alone], abs=1e-6)


def test_two_processes_make_the_base_of_one(tmp_path):
    for processes in ("1", "2"):
        command = [sys.executable, "-m", "minialign", "bases", "decoder-0.1m", "--fast", "--processes", processes,
                   "--work", tmp_path / f"work-{processes}", "--out", tmp_path / processes]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    one, two = (read_tensors(tmp_path / made / "decoder-0.1m" / "model.safetensors")[0] for made in ("1", "2"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name].float(), tensor.float(), atol=2e-3, rtol=1e-2)
