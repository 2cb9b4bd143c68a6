"""The training loop: its gradient is that of the whole batch, and no fault, wherever it falls, changes a bit of the
result."""

import math
import signal
import threading

import pytest
import torch
from torch import nn

from minialign.heads import LanguageModel
from minialign.pretrain.causal_lm import LabelledRows, next_token_loss
from minialign.runs import resumable
from minialign.runs.errors import UserError
from minialign.runs.resumable import Stopped, interruptible
from minialign.runs.run_folder import RunFolder
from minialign.runs.tensors import read_tensors
from minialign.training import TrainingConfig, adamw, gradient_step, learning_rate_at, train
from minialign.transformer import TransformerConfig

SHAPE = TransformerConfig(vocabulary=24, context=16, width=16, layers=1, heads=2, initial_std=0.1)
TEN = {"steps": 10, "batch": 6, "learning_rate": 1e-2, "validate_every": 5, "checkpoint_every": 5}


def ragged_rows(count=25, seed=0):
    """(ids, first taught place) of examples of 3 to 15 tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 16, (count,), generator=generator).tolist()
    return [([1, *torch.randint(3, 24, (n - 2,), generator=generator).tolist(), 2], 1 + i % 2) for i,
            n in enumerate(lengths)]


def run_stage(folder, loss=next_token_loss, validate=None, dropout=0.0, complete=None, **changes):
    """What a command does: build the model, go on from the folder's checkpoint or begin, train. Returns the model and
    the result."""
    config = TrainingConfig(**TEN | changes)
    model = LanguageModel(TransformerConfig(**vars(SHAPE) | {"dropout": dropout}), config.seed)
    folder.mkdir(exist_ok=True)
    return model, train(model, LabelledRows(ragged_rows(), config.batch, config.seed), loss, config, RunFolder(folder),
                        validate, complete=complete)


def once_at(step, action):
    """A loss that does something in the given step (1 is the first), once; between steps nothing is wrong with it."""
    seen = []

    def loss(model, batch):
        seen.append(batch)
        if len(seen) == step:
            action()
        return next_token_loss(model, batch)

    return loss


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


def fall_over():
    raise RuntimeError("the laptop fell from the table")


def stopped_at(folder, step, **changes):
    """A run in which Ctrl-C was pressed during a step."""
    with pytest.raises(Stopped) as stop:
        run_stage(folder, once_at(step, press_ctrl_c), **changes)
    return str(stop.value)


def same_bits(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# one step


def gradients(parts, clip=0.0, bf16=False):
    model = LanguageModel(SHAPE)
    data = LabelledRows(ragged_rows(), 12, seed=0)
    batches = data.microbatches(0, parts)
    config = TrainingConfig(batch=12, accumulation=parts, clip=clip, bf16=bf16)
    mean, norm = gradient_step(model, torch.optim.SGD(model.parameters(), lr=0.0), batches, next_token_loss, config,
                               sum(b.count for b in batches))
    return mean, norm, [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("parts", [2, 3, 5, 12])
def test_accumulation_equals_the_full_batch(parts):
    counts = [b.count for b in LabelledRows(ragged_rows(), 12, seed=0).microbatches(0, parts)]
    assert len(set(counts)) > 1  # ragged: a mean of means would differ
    whole, piecewise = gradients(1), gradients(parts)
    assert piecewise[0] == pytest.approx(whole[0], abs=1e-6) and piecewise[1] == pytest.approx(whole[1], abs=1e-6)
    for one, many in zip(whole[2], piecewise[2]):
        torch.testing.assert_close(many, one, rtol=0, atol=1e-6)


def test_the_loss_of_a_step_is_the_mean_over_its_labels():
    data = LabelledRows(ragged_rows(), 12, seed=0)
    model = LanguageModel(SHAPE)
    losses = []
    for i in data.order(0):
        ids, start = data.rows[i]
        logprobs = model(torch.tensor([ids]))[0].log_softmax(dim=-1).detach()
        losses += [-float(logprobs[t - 1, ids[t]]) for t in range(start, len(ids))]
    assert gradients(1)[0] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_a_long_gradient_is_clipped_and_its_length_before_that_is_reported():
    _, norm, free = gradients(1)
    assert norm == pytest.approx(float(torch.cat([g.flatten() for g in free]).norm()), rel=1e-5)
    for clip, length in ((norm / 2, norm / 2), (norm * 2, norm), (0.0, norm)):
        _, reported, clipped = gradients(1, clip)
        assert reported == pytest.approx(norm, rel=1e-6)
        assert float(torch.cat([g.flatten() for g in clipped]).norm()) == pytest.approx(length, rel=1e-4)


def test_bf16_computes_nearly_the_same_gradient_and_leaves_the_weights_in_float32():
    _, norm, exact = gradients(1)
    _, rounded_norm, rounded = gradients(1, bf16=True)
    assert any(not torch.equal(a, b) for a, b in zip(exact, rounded))
    assert all(g.dtype == torch.float32 for g in rounded) and rounded_norm == pytest.approx(norm, rel=0.05)
    cosine = torch.cosine_similarity(torch.cat([g.flatten() for g in exact]), torch.cat([g.flatten() for g in rounded]),
                                     dim=0)
    assert float(cosine) > 0.99


def test_adamw_equals_torch_s_plain_one_and_the_paper_s_formula():
    ours, theirs = (LanguageModel(SHAPE) for _ in range(2))
    groups = [{"params": [p for p in theirs.parameters() if p.dim() > 1], "weight_decay": 0.1}]
    groups += [{"params": [p for p in theirs.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    plain = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98), eps=1e-8, fused=False, foreach=False)
    fused = adamw(ours, 1e-2, 0.1)
    by_hand = ours.body.blocks[0].attention.query.weight.detach().double().clone()
    m = v = torch.zeros_like(by_hand)
    data = LabelledRows(ragged_rows(), 6, seed=0)
    for step in range(4):
        for model, optimizer in ((ours, fused), (theirs, plain)):
            optimizer.zero_grad()
            next_token_loss(model, data.microbatches(step, 1)[0]).backward()
            optimizer.step()
        g = ours.body.blocks[0].attention.query.weight.grad.double()
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g**2
        corrected = (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.98 ** (step + 1))).sqrt() + 1e-8)
        by_hand = by_hand - 1e-2 * corrected - 1e-2 * 0.1 * by_hand
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.body.blocks[0].attention.query.weight.double(), by_hand, rtol=0, atol=1e-4)


def test_only_matrices_decay():
    model = LanguageModel(SHAPE)
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
        parameter.grad = torch.zeros_like(parameter)
    adamw(model, learning_rate=0.1, weight_decay=0.5).step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.data, torch.full_like(parameter,
            0.95 if parameter.dim() >= 2 else 1.0)), name


def test_what_is_frozen_is_not_in_the_optimizer_and_does_not_change(tmp_path):
    model = LanguageModel(SHAPE)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, LabelledRows(ragged_rows(), 6, 0), next_token_loss, TrainingConfig(**TEN), RunFolder(tmp_path))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad or name.endswith("key.bias"), name


# the learning rate


def test_the_learning_rate_rises_in_a_line_and_falls_along_a_cosine():
    config = TrainingConfig(steps=20, learning_rate=0.4, warmup=0.2, final=0.1)
    rates = [learning_rate_at(step, config) for step in range(20)]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    for step in range(4, 20):
        assert rates[step] == pytest.approx(0.04 + 0.36 * (1 + math.cos(math.pi * (step - 4) / 16)) / 2)
    assert learning_rate_at(12, config) == pytest.approx((0.4 + 0.04) / 2) and learning_rate_at(20,
        config) == pytest.approx(0.04)


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("final", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_no_schedule_exceeds_the_peak_or_stands_still_at_first(warmup, final, steps):
    rates = [learning_rate_at(step, TrainingConfig(steps=steps, learning_rate=0.1, warmup=warmup, final=final))
             for step in range(steps)]
    assert rates[0] > 0 and max(rates) <= 0.1 + 1e-12 and min(rates) >= 0
    assert max(rates) == pytest.approx(0.1) or steps == 1


def test_the_learning_rate_of_each_step_reaches_the_optimizer_and_the_metrics(tmp_path):
    run_stage(tmp_path, warmup=0.3)
    rates = [record["learning_rate"] for record in RunFolder(tmp_path).metrics()]
    assert rates == [learning_rate_at(step, TrainingConfig(**TEN, warmup=0.3)) for step in range(10)]


# a whole run


def test_training_lowers_the_loss_and_leaves_a_finished_run(tmp_path):
    model, result = run_stage(tmp_path, steps=40)
    run = RunFolder(tmp_path)
    losses = [record["loss"] for record in run.metrics()]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert result == run.facts() == {"steps": 40} and not model.training
    assert run.finished and not (tmp_path / "checkpoint.safetensors").exists()
    saved, _ = read_tensors(tmp_path / "model.safetensors")
    assert all(torch.equal(saved[name], p) for name, p in model.named_parameters())


def test_every_step_writes_one_line_with_every_metric(tmp_path):
    run_stage(tmp_path)
    records = RunFolder(tmp_path).metrics()
    assert [record["step"] for record in records] == list(range(1, 11))
    for record in records:
        assert set(record) == {"step", "loss", "learning_rate", "gradient_norm", "tokens_per_second"}
        assert all(math.isfinite(value) for value in record.values()) and record["tokens_per_second"] > 0


def test_validation_is_measured_without_dropout_and_written_beside_the_steps(tmp_path):
    modes = {"validate": [], "loss": []}

    def validate(model):
        modes["validate"].append(model.training)
        return {"validation": 5.0 - len(modes["validate"]), "perplexity": 2.0}

    def loss(model, batch):
        modes["loss"].append(model.training)
        return next_token_loss(model, batch)

    _, result = run_stage(tmp_path, loss, validate, steps=8, validate_every=3)
    measured = {r["step"]: r["validation"] for r in RunFolder(tmp_path).metrics() if "validation" in r}
    assert measured == {3: 4.0, 6: 3.0, 8: 2.0}
    assert result == {"validation": 2.0, "perplexity": 2.0, "steps": 8}
    assert modes == {"validate": [False] * 3, "loss": [True] * 8}


def test_accumulation_changes_nothing_in_a_whole_run(tmp_path):
    one, _ = run_stage(tmp_path / "one")
    many, _ = run_stage(tmp_path / "many", accumulation=4)
    for a, b in zip(one.parameters(), many.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4)


def test_bf16_can_be_switched_on(tmp_path):
    run_stage(tmp_path, steps=20, bf16=True)
    losses = [record["loss"] for record in RunFolder(tmp_path).metrics()]
    assert losses[-1] < losses[0]


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path):
    first, second, other = (run_stage(tmp_path / name, seed=seed)[0] for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert same_bits(first, second) and not same_bits(first, other)


def test_the_same_seed_gives_the_same_bits_with_dropout_too(tmp_path):
    torch.manual_seed(1)
    first, _ = run_stage(tmp_path / "a", dropout=0.2)
    torch.manual_seed(2)
    assert same_bits(first, run_stage(tmp_path / "b", dropout=0.2)[0])


def test_the_last_change_is_made_to_the_trained_model_before_it_is_written(tmp_path):
    def complete(model):
        assert not model.training
        model.body.norm.weight.data.fill_(7.0)
        return {"reference_mean": 3.0}

    _, result = run_stage(tmp_path, complete=complete)
    assert result["reference_mean"] == RunFolder(tmp_path).facts()["reference_mean"] == 3.0
    assert (read_tensors(tmp_path / "model.safetensors")[0]["body.norm.weight"] == 7.0).all()


# faults


@pytest.mark.parametrize("stops", [[5], [1], [3, 4, 8]])
def test_a_resumed_run_ends_with_the_same_bits(stops, tmp_path):
    whole, _ = run_stage(tmp_path / "whole")
    for before, stop in zip([0, *stops], stops):
        stopped_at(tmp_path / "parts", stop - before)
    parts, _ = run_stage(tmp_path / "parts")
    assert same_bits(whole, parts)


def test_weights_and_optimizer_after_a_resume_are_bit_for_bit_those_of_one_go(tmp_path):
    stopped_at(tmp_path / "whole", 8)
    stopped_at(tmp_path / "parts", 4)
    stopped_at(tmp_path / "parts", 4)
    tensors, metadata = read_tensors(tmp_path / "whole" / "checkpoint.safetensors")
    again, metadata_again = read_tensors(tmp_path / "parts" / "checkpoint.safetensors")
    assert metadata == metadata_again and tensors.keys() == again.keys()
    assert sum(name.endswith("exp_avg") for name in tensors) == len(list(LanguageModel(SHAPE).parameters()))
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)


def test_a_resumed_run_with_dropout_ends_with_the_same_bits(tmp_path):
    torch.manual_seed(0)
    whole, _ = run_stage(tmp_path / "whole", dropout=0.2)
    torch.manual_seed(0)
    stopped_at(tmp_path / "parts", 5, dropout=0.2)
    torch.manual_seed(77)  # a new process knows nothing of the old one's generator
    assert same_bits(whole, run_stage(tmp_path / "parts", dropout=0.2)[0])


def test_ctrl_c_ends_the_step_saves_and_says_how_to_go_on(tmp_path):
    message = stopped_at(tmp_path, 3)
    assert message == f"stopped at step 3 of 10, saved in {tmp_path}; the same command goes on from there"
    assert read_tensors(tmp_path / "checkpoint.safetensors")[1]["state"]["step"] == 3
    assert not RunFolder(tmp_path).finished


def test_ctrl_c_at_any_moment_of_a_step_saves_what_it_says(tmp_path, monkeypatch):
    class Bar(resumable.tqdm):
        updates = 0

        def update(self, n=1):
            Bar.updates += 1
            if Bar.updates == 3:
                press_ctrl_c()

    monkeypatch.setattr(resumable, "tqdm", Bar)
    with pytest.raises(Stopped) as stop:
        run_stage(tmp_path)
    step = int(str(stop.value).split("stopped at step ")[1].split()[0])
    state = RunFolder(tmp_path).load_checkpoint({"model": LanguageModel(SHAPE)}, {}, {})
    assert state is not None and state["step"] == step


def test_ctrl_c_in_the_last_step_lets_the_run_finish_and_stops_what_would_come_after_it(tmp_path):
    assert "finished" in stopped_at(tmp_path, 10)
    assert RunFolder(tmp_path).finished


def test_the_second_ctrl_c_ends_at_once_and_afterwards_the_key_works_as_before():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible() as pressed:
        assert not pressed()
        press_ctrl_c()
        assert pressed()
        press_ctrl_c()
    assert signal.getsignal(signal.SIGINT) is before


def test_training_works_in_a_thread_where_no_key_can_be_caught(tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(run_stage(tmp_path)))
    thread.start()
    thread.join(60)
    assert done and RunFolder(tmp_path).finished


@pytest.mark.parametrize("crash", [8, 3])
def test_no_step_is_written_twice_after_a_crash(crash, tmp_path):
    with pytest.raises(RuntimeError):
        run_stage(tmp_path, once_at(crash, fall_over))  # checkpoints are after steps 5 and 10
    run_stage(tmp_path)
    assert [record["step"] for record in RunFolder(tmp_path).metrics()] == list(range(1, 11))


@pytest.mark.parametrize("crash", [8, 3])
def test_a_line_that_was_cut_short_by_a_crash_does_no_harm(crash, tmp_path):
    with pytest.raises(RuntimeError):
        run_stage(tmp_path, once_at(crash, fall_over))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "lo')
    run_stage(tmp_path)
    assert [record["step"] for record in RunFolder(tmp_path).metrics()] == list(range(1, 11))


def test_going_on_does_not_write_into_the_checkpoint_that_it_goes_on_from(tmp_path):
    stopped_at(tmp_path, 4)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(RuntimeError):
        run_stage(tmp_path, once_at(3, fall_over), checkpoint_every=100)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize("poison", ["loss", "infinite loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change_and_names_the_rows(poison, tmp_path):
    order = LabelledRows(ragged_rows(), 6, seed=0).order
    seen = []

    def loss(model, batch):
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        value = next_token_loss(model, batch)
        if len(seen) < 8:
            return value
        spoil = {"loss": math.nan, "infinite loss": math.inf, "gradient": (model.body.norm.weight.sum()
            * 0).sqrt()}[poison]
        return value + spoil

    model = LanguageModel(SHAPE)
    with pytest.raises(UserError) as error:
        train(model, LabelledRows(ragged_rows(), 6, 0), loss, TrainingConfig(**TEN), RunFolder(tmp_path))
    assert f"{tmp_path}: step 7: the loss is" in str(error.value) and f"on examples {order(7)}" in str(error.value)
    assert "try a smaller --learning-rate; the last good checkpoint is kept" in str(error.value)
    assert all(torch.equal(seen[-1][name], p) for name, p in model.named_parameters())
    assert read_tensors(tmp_path / "checkpoint.safetensors")[1]["state"]["step"] == 5


def test_after_a_loss_that_was_not_finite_the_run_can_go_on(tmp_path):
    whole, _ = run_stage(tmp_path / "whole")
    seen = []

    def loss(model, batch):
        seen.append(batch)
        return next_token_loss(model, batch) * (math.nan if len(seen) == 8 else 1)

    with pytest.raises(UserError):
        run_stage(tmp_path / "parts", loss)
    assert same_bits(whole, run_stage(tmp_path / "parts")[0])


# early stopping


def looks(values, seen):
    """A validation that measures what is written down beforehand, and remembers the weights it was shown."""

    def validate(model):
        seen.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())
        return {"validation": values[len(seen) - 1]}

    return validate


def test_early_stopping_gives_up_after_its_patience_and_restores_the_best_weights(tmp_path):
    seen = []
    model, result = run_stage(tmp_path, validate=looks([3.0, 1.0, 2.0, 1.5, 0.5], seen), validate_every=2, patience=2)
    assert len(seen) == 4 and result["steps"] == 8
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), seen[1])
    assert not (tmp_path / "best").exists()
    saved, _ = read_tensors(tmp_path / "model.safetensors")
    assert all(torch.equal(saved[name], p) for name, p in model.named_parameters())


def test_the_best_weights_are_restored_at_the_end_too_and_without_patience_the_last_are_kept(tmp_path):
    for patience, best in ((9, 1), (0, 4)):
        seen = []
        model, _ = run_stage(tmp_path / str(patience), validate=looks([3.0, 1.0, 2.0, 2.0, 2.0], seen),
                             validate_every=2, patience=patience)
        assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), seen[best])


def test_the_validation_that_is_reported_is_that_of_the_weights_that_are_kept(tmp_path):
    _, result = run_stage(tmp_path, validate=looks([3.0, 1.0, 2.0, 1.5], []), validate_every=2, patience=2)
    assert result["validation"] == RunFolder(tmp_path).facts()["validation"] == 1.0


@pytest.mark.parametrize("stop", [3, 5, 7])
def test_early_stopping_survives_a_resume(stop, tmp_path):
    values, seen = [3.0, 1.0, 2.0, 1.5, 0.5], []
    whole, result = run_stage(tmp_path / "whole", validate=looks(values, []), validate_every=2, patience=2)
    with pytest.raises(Stopped):
        run_stage(tmp_path / "parts", once_at(stop, press_ctrl_c), looks(values, seen), validate_every=2, patience=2)
    parts, again = run_stage(tmp_path / "parts", validate=looks(values, seen), validate_every=2, patience=2)
    assert same_bits(whole, parts) and again == result


def test_a_validation_that_is_not_a_number_counts_as_no_improvement(tmp_path):
    seen = []
    model, result = run_stage(tmp_path, validate=looks([2.0, math.nan, math.nan], seen), validate_every=2, patience=2)
    assert result["steps"] == 6 and torch.equal(nn.utils.parameters_to_vector(model.parameters()), seen[0])


# what cannot be


@pytest.mark.parametrize(
    "change",
    [{name: 0} for name in ("steps", "batch", "accumulation", "validate_every", "checkpoint_every")]
    + [{"learning_rate": 0.0}, {"learning_rate": 1.0}, {"learning_rate": math.nan}, {"warmup": 1.1}, {"final": -0.1},
       {"batch": 4, "accumulation": 5}]
    + [{"beta2": 1.0}, {"weight_decay": -0.1}, {"clip": -1.0}, {"patience": -1}, {"clip": math.nan}],
)
def test_settings_that_make_no_sense_are_errors_that_name_them(change):
    with pytest.raises(UserError, match=next(iter(change)).replace("_", "[_ ]")):
        TrainingConfig(**change)
