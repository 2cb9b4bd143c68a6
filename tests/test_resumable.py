"""A loop that may be cut off: it goes on from its last checkpoint, and what failed is kept for a look."""

import pytest
import torch

from minialign.runs.errors import UserError
from minialign.runs.resumable import ResumableLoop
from minialign.runs.run_folder import RunFolder
from minialign.runs.tensors import read_tensors


def walk(folder, fail_at=None, every=2):
    """Seven steps that add a random number each; returns (weight, memory of all steps)."""
    module, generator = torch.nn.Linear(1, 1, bias=False), torch.Generator().manual_seed(0)
    module.weight.data.zero_()
    with ResumableLoop(RunFolder(folder), {"m": module}, {}, {"g": generator}, {"seen": []}) as loop:
        for step in loop.steps(7, "walking", every=every):
            with loop.kept_on_error("failed.safetensors", {"x": module.weight.data, "rows": [step]}):
                if step == fail_at:
                    raise UserError("the power is gone")
            module.weight.data += torch.rand(1, generator=generator)
            loop.state["seen"].append(step)
            loop.done({"weight": module.weight.item()}, "")
    return module.weight.item(), loop.state["seen"]


def test_a_loop_goes_on_from_its_last_checkpoint_and_writes_each_line_once(tmp_path):
    whole, seen = walk(tmp_path / "whole")
    assert seen == list(range(7))
    with pytest.raises(UserError, match=r"step 6: the power is gone; the batch is in .*failed.safetensors"):
        walk(tmp_path / "parts", fail_at=5)
    assert len(RunFolder(tmp_path / "parts").metrics()) == 5  # and the checkpoint is of step 4
    assert walk(tmp_path / "parts") == (whole, seen)
    assert RunFolder(tmp_path / "parts").metrics() == RunFolder(tmp_path / "whole").metrics()


def test_what_a_step_could_not_learn_from_is_left_in_the_run_folder(tmp_path):
    with pytest.raises(UserError, match="step 1: "):
        walk(tmp_path, fail_at=0)
    tensors, about = read_tensors(tmp_path / "failed.safetensors")
    assert tensors["x"].tolist() == [[0.0]] and about["rows"] == [0]
