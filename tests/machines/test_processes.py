"""Several processes that train one model, started as torchrun starts them: the same curve, one writer, one line for
what goes wrong."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minialign.runs.run_folder import RunFolder
from minialign.runs.tensors import read_tensors

# Not ReLU: gradients summed in another order differ in their last bits, and where an input is within rounding of 0 that
# decides whether a unit learns (with noise of the last bit 49 of 59 runs parted by more than 1e-5; with GELU none).
SIZE = ["--vocabulary", "300", "--width", "32", "--heads", "2", "--layers", "2", "--context", "48", "--batch", "8",
        "--split", "paragraphs", "--activation", "gelu"]


@pytest.fixture
def port():
    """A free one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def text(texts, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return path


def start(processes, port, arguments, each=None, program=("-m", "minialign")):
    """The command in several processes; `each`: more arguments of the one with that rank."""
    address = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
               "OMP_NUM_THREADS": "1"}
    return [subprocess.Popen([sys.executable, *map(str, program), *arguments, *(each or {}).get(rank, [])],
                             env=os.environ | address | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for rank in range(processes)]


def ended(started, seconds=120):
    """Exit codes, outputs and the last lines of what was said on stderr."""
    try:
        said = [process.communicate(timeout=seconds) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
            process.stdout.close(), process.stderr.close()
    errors = [[line for line in error.split("\n") if line and "\r" not in line and "it/s" not in line]
              for _, error in said]
    return [process.returncode for process in started], [out for out, _ in said], errors


def pretraining(text, out, *more):
    return ["pretrain", "--text", str(text), *SIZE, "--out", str(out), *more]


def losses(folder):
    return [line["loss"] for line in RunFolder(folder).metrics()]


def wait_for_lines(folder, count, seconds=90):
    began = time.monotonic()
    while len(RunFolder(folder).metrics()) < count:
        assert time.monotonic() - began < seconds, "too slow"
        time.sleep(0.05)


def test_one_two_and_four_processes_learn_the_same(text, tmp_path, port):
    found = {}
    for processes in (1, 2, 4):
        out = tmp_path / str(processes)
        codes, outputs, errors = ended(start(processes, port + processes, pretraining(text, out, "--steps", "50")))
        assert codes == [0] * processes, errors
        assert "perplexity" in outputs[0] and outputs[1:] == [""] * (processes - 1)
        found[processes] = losses(out)
    assert len(found[1]) == 50
    for processes in (2, 4):
        assert found[processes] == pytest.approx(found[1], abs=1e-5)


def test_shards_learn_the_same_and_another_number_goes_on_without_them(text, tmp_path, port):
    whole, out = tmp_path / "whole", tmp_path / "run"
    arguments = ("--steps", "40", "--checkpoint-every", "10", "--validate-every", "7", "--patience", "50",
                 "--accumulation", "2")
    assert ended(start(1, port, pretraining(text, whole, *arguments)))[0] == [0]
    together = start(2, port, pretraining(text, out, *arguments, "--shard"))
    wait_for_lines(out, 15)
    together[0].send_signal(signal.SIGINT)
    assert ended(together)[0] == [130, 130]
    assert 15 <= len(losses(out)) < 40
    codes, _, errors = ended(start(2, port + 1, pretraining(text, out, *arguments, "--shard")))
    assert codes == [0, 0], errors
    assert losses(out) == pytest.approx(losses(whole), abs=1e-5)
    for name, weight in read_tensors(whole / "model.safetensors")[0].items():
        assert (read_tensors(out / "model.safetensors")[0][name] - weight).abs().max() < 1e-3, name


@pytest.mark.parametrize("kind", ["ppo", "grpo", "grpo-tokens"])
def test_rollouts_are_shared_and_the_policy_learns_the_same(tmp_path, port, kind):
    program = (Path(__file__).parent / "shared_rollouts.py",)
    for processes in (1, 2):
        codes, _, errors = ended(start(processes, port, [kind, str(tmp_path / str(processes))], program=program))
        assert codes == [0] * processes, errors
    one, two = (RunFolder(tmp_path / name).metrics() for name in ("1", "2"))
    assert len(one) == len(two) == 6
    for alone, together in zip(one, two):
        assert together == pytest.approx(alone, abs=1e-3)
    for name, weight in read_tensors(tmp_path / "1" / "model.safetensors")[0].items():
        assert (read_tensors(tmp_path / "2" / "model.safetensors")[0][name] - weight).abs().max() < 1e-4, name


def test_another_number_of_processes_goes_on_after_ctrl_c(text, tmp_path, port):
    whole, out = tmp_path / "whole", tmp_path / "run"
    arguments = ("--steps", "60", "--checkpoint-every", "500")
    assert ended(start(1, port, pretraining(text, whole, *arguments)))[0] == [0]
    together = start(2, port, pretraining(text, out, *arguments))
    wait_for_lines(out, 10)
    together[1].send_signal(signal.SIGINT)
    codes, _, errors = ended(together)
    assert codes == [130, 130] and "stopped at step" in errors[0][-1]
    assert 10 <= len(losses(out)) < 60
    assert ended(start(1, port, pretraining(text, out, *arguments)))[0] == [0]
    assert losses(out) == pytest.approx(losses(whole), abs=1e-5)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_others_with_one_line_that_names_it(text, tmp_path, port, killed):
    out, arguments = tmp_path / "run", ("--steps", "400", "--checkpoint-every", "5")
    together = start(2, port, pretraining(text, out, *arguments))
    wait_for_lines(out, 12)
    together[killed].kill()
    together[killed].wait()
    began = time.monotonic()
    codes, _, errors = ended(together, 30)
    assert time.monotonic() - began < 30
    assert codes[1 - killed] == 2
    assert errors[1 - killed] == [f"error: process {killed} has ended, so the others stop; the same command goes on "
                                  f"from the last checkpoint"]
    assert read_tensors(out / "checkpoint.safetensors")[1]["state"]["step"] % 5 == 0


def test_processes_with_different_settings_or_data_do_not_begin(text, tmp_path, port):
    other = tmp_path / "other.txt"
    other.write_text(text.read_text(encoding="utf-8") + " more", encoding="utf-8")
    for more, what in ((["--learning-rate", "0.001"], "training.learning_rate"), (["--text", str(other)], "data")):
        codes, _, errors = ended(start(2, port, pretraining(text, tmp_path / "run"), {1: more}))
        assert codes == [2, 2]
        assert all(f"process 1 was given another {what} than process 0" in error[-1] for error in errors)
        assert not (tmp_path / "run" / "config.json").exists()
        port += 1


def test_a_port_in_use_is_an_error(text, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        together = start(2, number, pretraining(text, tmp_path / "run"))
        together[0].wait(60)
        together[1].kill()  # as torchrun does
        codes, _, errors = ended(together)
    assert codes[0] == 2 and f"the port {number}" in errors[0][-1] and "--master-port" in errors[0][-1]


def test_fewer_rows_than_processes_is_an_error(text, tmp_path, port):
    codes, _, errors = ended(start(2, port, pretraining(text, tmp_path / "run", "--batch", "1")))
    assert codes == [2, 2] and "cannot be shared by 2 processes" in errors[0][-1]


def test_a_command_that_several_processes_cannot_share_says_so(port):
    codes, _, errors = ended(start(2, port, ["annotators"]))
    assert codes == [2, 2] and "runs in one process; torchrun can share pretrain" in errors[0][-1]
    assert json.dumps(errors[0]).count("error") == 1
