"""The teacher's opinions on disk: never another teacher's, never another text's, and the same student in the end."""

import dataclasses

import pytest
import torch
from conftest import build

from minialign.distill.distilgpt2 import DISTILGPT2
from minialign.distill.recipe import distil
from minialign.distill.soft_targets import SoftTargetConfig, SoftTargets, soft_target_loss
from minialign.distill.student import start_from, student_config
from minialign.heads import LanguageModel
from minialign.lab.teacher_cache import (
    CacheConfig,
    CachedSoftTargets,
    TeacherCache,
    identity,
    pack,
    top_k_soft_target_loss,
)
from minialign.pretrain.causal_lm import LabelledRows
from minialign.pretrain.masked_lm import MaskedText
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.training import TrainingConfig

TRAINING = TrainingConfig(steps=6, batch=4, learning_rate=1e-3, validate_every=6, checkpoint_every=2)
ONLY_SOFT = SoftTargetConfig()


@pytest.fixture
def teacher():
    return build(layers=4)


@pytest.fixture
def data():
    chance = torch.Generator().manual_seed(0)
    return LabelledRows([([1, *torch.randint(20, 320, (5 + i % 6,), generator=chance).tolist(), 2], 1 + i % 2)
                         for i in range(12)], 4, 0)


class Interrupted(Exception):
    pass


class Counting(SoftTargets):
    """Counts the rows that the teacher computes."""

    rows = 0

    def teacher_outputs(self, batch):
        self.rows += len(batch.tokens)
        return super().teacher_outputs(batch)


class Counted(CachedSoftTargets, Counting):
    """Counts the rows that the cache does not know."""


def taught(teacher, data, held_out, folder, cache):
    student = start_from(LanguageModel(student_config(teacher.config), TRAINING.seed), teacher)
    recipe = CachedSoftTargets(teacher, DISTILGPT2, cache)
    distil(student, recipe, data, held_out, TRAINING, RunFolder(folder))
    return student


def loss_of(recipe, data, names, student=None):
    return float(recipe(student or build(seed=5, layers=2), data.batch(names)).detach())


def test_rows_are_found_in_other_batches(teacher, data, tmp_path):
    recipe = Counted(teacher, DISTILGPT2, CacheConfig(str(tmp_path)))
    plain = SoftTargets(teacher, DISTILGPT2)
    for names, thought in (([0, 1, 2], 3), ([2, 5, 0, 1], 4), ([1, 1, 5], 4), ([7, 8, 2], 6)):
        assert loss_of(recipe, data, names) == pytest.approx(loss_of(plain, data, names), rel=2e-3)
        assert recipe.rows == thought
    again = Counted(teacher, DISTILGPT2, CacheConfig(str(tmp_path)))
    assert loss_of(again, data, [8, 2, 0]) == loss_of(recipe, data, [8, 2, 0]) and again.rows == 0
    assert (again.cache.asked, again.cache.found) == (3, 3)
    assert again.cache.bytes == sum(f.stat().st_size for f in tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("top_k", [0, 7])
def test_a_changed_teacher_never_meets_a_stale_cache(top_k, teacher, data, tmp_path):
    cache, names = CacheConfig(str(tmp_path), top_k), [0, 1, 2]
    loss_of(CachedSoftTargets(teacher, ONLY_SOFT, cache), data, names)
    with torch.no_grad():
        teacher.body.blocks[3].feed_forward.output.bias[0] += 0.5  # one number of many
    changed = Counted(teacher, ONLY_SOFT, cache)
    fresh = CachedSoftTargets(teacher, ONLY_SOFT, CacheConfig(str(tmp_path / "new"), top_k))
    assert loss_of(changed, data, names) == loss_of(fresh, data, names)
    assert changed.rows == 3
    smeared = build(layers=4)
    smeared.config = dataclasses.replace(smeared.config, activation="relu")  # the same numbers, another meaning
    assert identity(smeared) != identity(build(layers=4)) == identity(build(layers=4))


def test_what_is_kept_belongs_to_its_settings_too(teacher, data, tmp_path):
    """The top k are of a softened distribution, and without a cosine no hidden vectors are kept."""
    seen = set()
    for config, top_k in ((ONLY_SOFT, 0), (DISTILGPT2, 0), (ONLY_SOFT, 3), (ONLY_SOFT, 4),
                          (SoftTargetConfig(temperature=3.0), 3)):
        recipe = Counted(teacher, config, CacheConfig(str(tmp_path), top_k))
        loss_of(recipe, data, [0, 1])
        assert recipe.rows == 2
        seen.add(recipe.cache.folder)
    assert len(seen) == 5
    warmer = Counted(teacher, SoftTargetConfig(temperature=3.0), CacheConfig(str(tmp_path)))
    loss_of(warmer, data, [0, 1])
    assert warmer.rows == 0, "whole logits serve every temperature"


def test_a_row_is_its_tokens_and_what_is_compared(teacher, data, tmp_path):
    recipe = Counted(teacher, ONLY_SOFT, CacheConfig(str(tmp_path)))
    loss_of(recipe, data, [0])
    ids, start = data.rows[0]
    for other, thought in (([(ids, start)], 1), ([(ids, start + 2)], 2), ([([*ids[:-1], 77], start)], 2),
                           ([([*ids[:2], 78, *ids[3:]], start)], 3)):
        rows = LabelledRows(other, 1, 0)
        assert loss_of(recipe, rows, [0]) == pytest.approx(loss_of(SoftTargets(teacher, ONLY_SOFT), rows, [0]),
                                                           rel=2e-3)
        assert recipe.rows == thought  # the last token of a row is a label, which the teacher does not read


def test_an_encoders_rows_are_found_when_the_same_words_are_hidden(tmp_path):
    teacher, chance = build(layers=4, kind="encoder"), torch.Generator().manual_seed(0)
    data = MaskedText([[1, *torch.randint(20, 320, (30,), generator=chance).tolist()] for _ in range(6)], 3, 0, 320)
    recipe, student = Counted(teacher, DISTILGPT2, CacheConfig(str(tmp_path))), build(seed=5, layers=2, kind="encoder")
    for step, thought in ((0, 3), (0, 3), (1, 6)):
        batch = data.batch([0, 1, 2], step)
        plain = float(SoftTargets(teacher, DISTILGPT2)(student, batch).detach())
        assert float(recipe(student, batch).detach()) == pytest.approx(plain, rel=2e-3)
        assert recipe.rows == thought


@pytest.mark.parametrize("top_k", [0, 8])
def test_a_run_that_goes_on_from_a_cache_ends_with_the_same_bits(top_k, teacher, data, tmp_path):
    held_out, cache = [data.batch([9, 10, 11])], CacheConfig(str(tmp_path / "cache"), top_k)
    cold = taught(teacher, data, held_out, tmp_path / "cold", cache)
    warm = taught(teacher, data, held_out, tmp_path / "warm", cache)
    assert all(torch.equal(a, b) for a, b in zip(cold.parameters(), warm.parameters()))

    class Failing(LabelledRows):
        def microbatches(self, step, parts):
            if step == 5:
                raise Interrupted
            return super().microbatches(step, parts)

    parts = CacheConfig(str(tmp_path / "other"), top_k)
    with pytest.raises(Interrupted):
        taught(teacher, Failing(data.rows, 4, 0), held_out, tmp_path / "parts", parts)
    again = taught(teacher, data, held_out, tmp_path / "parts", parts)
    assert all(torch.equal(a, b) for a, b in zip(cold.parameters(), again.parameters()))


def test_sixteen_bits_are_enough():
    """Logits around 300 would be off by an eighth in 16 bits; shifted, the probabilities that matter are exact to a
    thousandth."""
    logits = 4 * torch.randn(200, 320, generator=torch.Generator().manual_seed(0)) + 300
    kept = pack(logits, 0, 1.0)["logits"].float()
    p, q = logits.softmax(-1), kept.softmax(-1)
    assert float(((p - q).abs() / p)[p > 1e-3].max()) < 4e-3
    assert float((p * (p.log() - q.log())).sum(-1).max()) < 1e-5


def test_top_k_and_the_rest_are_a_coarser_kl():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(6, 30, generator=generator), 2 * torch.randn(6, 30, generator=generator)
    full, before = float(soft_target_loss(student, teacher, torch.ones(6, dtype=torch.bool), 2.0)), 0.0
    for k in (1, 5, 20, 29):
        kept = pack(teacher, k, 2.0)
        p, q = (x.div(2).softmax(-1) for x in (teacher, student))
        slow = 0.0
        for a, b, ids in zip(p, q, kept["ids"].long()):
            rest_a, rest_b = 1 - a[ids].sum(), 1 - b[ids].sum()
            slow += float((a[ids] * (a[ids] / b[ids]).log()).sum() + rest_a * (rest_a / rest_b).log())
        found = float(top_k_soft_target_loss(student, kept["words"], kept["ids"], 2.0))
        assert found == pytest.approx(4 * slow / 6, rel=5e-3) and before < found <= full * 1.005
        assert abs(float(top_k_soft_target_loss(teacher, kept["words"], kept["ids"], 2.0))) < 1e-5
        before = found
    assert before == pytest.approx(full, rel=5e-3), "all but one word, and the rest is that one"
    wanting = student.clone().requires_grad_()
    top_k_soft_target_loss(wanting, kept["words"], kept["ids"], 2.0).backward()
    assert wanting.grad.isfinite().all() and wanting.grad.sum(-1).abs().max() < 1e-5


def test_the_top_k_need_few_bytes(teacher, data, tmp_path):
    sizes = {}
    for top_k in (0, 8):
        recipe = CachedSoftTargets(teacher, ONLY_SOFT, CacheConfig(str(tmp_path), top_k))
        loss_of(recipe, data, list(range(12)))
        tensors = next(iter(recipe.cache.open.values()))
        sizes[top_k] = sum(t.numel() * t.element_size() for t in tensors.values()) / len(next(iter(tensors.values())))
    assert sizes == {0: 2 * 320, 8: 6 * 8 + 2}


def test_a_damaged_file_is_made_anew_and_a_full_cache_computes_the_rest(teacher, data, tmp_path):
    cache, names = CacheConfig(str(tmp_path)), [0, 1, 2]
    value = loss_of(CachedSoftTargets(teacher, ONLY_SOFT, cache), data, names)
    (file,) = tmp_path.rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-5] ^= 255
    file.write_bytes(content)
    again = Counted(teacher, ONLY_SOFT, cache)
    assert loss_of(again, data, names) == value and again.rows == 3 and file.exists()
    small = Counted(teacher, ONLY_SOFT, CacheConfig(str(tmp_path / "small"), most_gib=0.0))
    assert loss_of(small, data, names) == loss_of(small, data, names) == value and small.rows == 6
    assert not list((tmp_path / "small").rglob("*.safetensors")) and small.cache.bytes == 0


def test_a_teacher_whose_opinion_has_no_weight_is_not_asked(teacher, data):
    recipe = Counting(teacher, SoftTargetConfig(soft=0.0, hard=1.0))
    loss_of(recipe, data, [0, 1])
    assert recipe.rows == 0


@pytest.mark.parametrize("wrong", [{"top_k": -1}, {"most_gib": -1.0}])
def test_impossible_caches_are_refused(wrong, teacher, tmp_path):
    with pytest.raises(UserError, match=next(iter(wrong))):
        TeacherCache(CacheConfig(str(tmp_path), **wrong), teacher, 1.0)
