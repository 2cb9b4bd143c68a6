"""Models whose weights several processes hold in parts: they learn what one process learns, and are saved whole."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from minialign.runs.run_folder import RunFolder
from minialign.runs.tensors import read_tensors


def torchrun(line, processes):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                        "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen([sys.executable, "-m", "minialign", *line.split()], stdout=subprocess.DEVNULL,
                                env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE,
                                text=True) for rank in range(processes)]
    said = [each.communicate(timeout=120)[1] for each in started]
    return [each.returncode for each in started], said


def losses(folder):
    return [line["loss"] for line in RunFolder(folder).metrics()]


STEPS = "--steps 6 --batch 8 --learning-rate 5e-3 --validate-every 3"


@pytest.mark.parametrize("line", ["dpo --policy sft --comparisons pairs.jsonl",
                                  "reward --base sft --comparisons pairs.jsonl --references 20"])
def test_shards_learn_from_several_completions_of_a_prompt(runs, line):
    assert torchrun(f"{line} {STEPS} --out one", 1)[0] == [0]
    codes, said = torchrun(f"{line} {STEPS} --shard --out two", 2)
    assert codes == [0, 0], said
    assert losses(runs / "two") == pytest.approx(losses(runs / "one"), abs=1e-5)


@pytest.mark.parametrize("method", ["lora", "full", "prompt-tuning"])
def test_what_shards_tuned_is_saved_whole(runs, method):
    line = f"finetune --method {method} --base sft --data demos.jsonl {STEPS}"
    assert torchrun(f"{line} --out one", 1)[0] == [0]
    codes, said = torchrun(f"{line} --shard --out two", 2)
    assert codes == [0, 0], said
    one, two = (read_tensors(runs / out / method / "tuned.safetensors")[0] for out in ("one", "two"))
    assert set(one) == set(two) and all(torch.allclose(one[n], two[n], atol=1e-3) for n in one)


def test_two_processes_learn_of_thumbs_what_one_does(runs):
    line = "kto --policy sft --judged thumbs.jsonl --steps 20 --batch 8 --learning-rate 5e-3"
    for n in (1, 2):
        assert torchrun(f"{line} --out {n}", n)[0] == [0] * n
    assert losses(runs / "2") == pytest.approx(losses(runs / "1"), abs=1e-4)
