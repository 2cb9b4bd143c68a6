"""The bases: what they read, how they are made, checked and refused; on a base too small to read anything."""

import json
import random
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY

from minialign.__main__ import run
from minialign.batching import IGNORE
from minialign.generation import prompt_ids
from minialign.lab.bases import controls
from minialign.lab.bases.controls import (
    FORMS_NEEDED,
    Control,
    answered,
    answered_rightly,
    control_questions,
    measure,
)
from minialign.lab.bases.gaps import (
    LONGEST,
    MOST,
    ContinuedDocuments,
    GappedDocuments,
    MaskedDocuments,
    completion_spans,
    few_questions,
)
from minialign.lab.bases.make import BASES, CARD, Maker, load_base
from minialign.lab.bases.recipes import RECIPES
from minialign.lab.bases.texts import ASKED, CLEAN, MARK, TAUGHT, Corpus, MarkedRows, encode_chunk, marked_documents
from minialign.pretrain.masked_lm import MASK
from minialign.pretrain.span_corruption import corrupt, rebuild
from minialign.runs.errors import UserError
from minialign.runs.tensors import read_tensors
from minialign.tokenizer import BEGIN, END
from minialign.world.corpus import HEADINGS
from minialign.world.reading_corpus import FORMS
from minialign.world.tasks import reference_summary

NAME = "decoder-0.1m"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base that was made as fast as can be: where its work is, where it went, and what was said."""
    work, out, said = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("bases"), []
    return work, Maker(work, out, 0, True, 1, said.append).make(NAME), said


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    corpus = Corpus(tmp_path_factory.mktemp("corpus"), 0, 40, 40)
    tokenizer, files = corpus.write(range(CLEAN + 1))
    return corpus, tokenizer, files[CLEAN:]


# what they read


def test_completions_are_marked_token_by_token(corpus):
    corpus, tokenizer, files = corpus
    data = MarkedRows(files, tokenizer, 256, 8, 0)
    for i, (text, places, questions) in enumerate(marked_documents(CLEAN, 0, 40, 40)):
        codes = data.codes[data.starts[i] : data.starts[i] + data.lengths[i]]
        assert text.startswith(tokenizer.decode(codes % ASKED))
        if data.lengths[i] < 255:
            marked = tokenizer.decode(codes[codes >= MARK] % ASKED)
            assert marked.replace(" ", "") == "".join(text[start:end] for start, end in places).replace(" ", "")
            begun = np.flatnonzero(codes & ASKED)
            assert [tokenizer.decode(codes[: first] % ASKED) for first in begun] == [text[:at] for at in questions]


def test_every_completion_is_taught_and_some_of_the_rest(corpus):
    _, tokenizer, files = corpus
    data = MarkedRows(files, tokenizer, 256, 40, 0)
    taught = others = 0
    for step in range(20):
        names = data.order(step)
        batch = data.batch(names, step)
        for row, name in enumerate(names):
            codes = data.codes[data.starts[name] : data.starts[name] + data.lengths[name]].astype(np.int64)
            labels = batch.labels[row, : len(codes)]
            marked = torch.from_numpy(codes >= MARK)
            assert (labels[marked] == torch.from_numpy(codes % ASKED)[marked]).all()
            taught, others = taught + int((labels[~marked] != IGNORE).sum()), others + int((~marked).sum())
    assert taught / others == pytest.approx(TAUGHT, abs=0.01)
    again, other = data.batch(names, step), data.batch(names, step + 1)
    assert again.labels.equal(batch.labels) and not other.labels.equal(batch.labels)


def test_the_first_chunks_hold_nothing_dirty_and_the_card_counts_that(corpus):
    corpus, _, (file,) = corpus
    first, later = (np.fromfile(path, np.uint16)[0] for path in (corpus.folder / "chunk-0000.bin", file))
    assert (first, later) == (40, 80)
    shares = corpus.shares(range(CLEAN + 1))
    assert shares["dirty"] == 40 / (40 * (CLEAN + 1) + 40) and sum(shares.values()) == pytest.approx(1)


def test_what_is_false_is_marked_as_what_is_true_is(corpus):
    found = [places for _, places, _ in marked_documents(CLEAN, 0, 0, 400)]
    texts = [text for text, *_ in marked_documents(CLEAN, 0, 0, 400)]
    headed = [(text, places) for text, places in zip(texts, found) if any(heading in text for heading in HEADINGS)]
    assert len(headed) > 150 and all(len(places) == 1 and places[0][1] == len(text) for text, places in headed)


def test_a_chunk_is_the_same_wherever_it_is_made(corpus):
    corpus, _, (file,) = corpus
    again = encode_chunk(CLEAN, 0, (40, 40), str(corpus.folder / "tokenizer.json"))
    assert file.read_bytes() == again.tobytes()
    assert encode_chunk(CLEAN + 1, 0, (40, 40), str(corpus.folder / "tokenizer.json")).tobytes() != again.tobytes()


@pytest.mark.parametrize("documents", [GappedDocuments, MaskedDocuments])
def test_completions_are_what_is_missing_for_encoders(documents, corpus):
    _, tokenizer, files = corpus
    data = documents(files, tokenizer, 256, 8, 0)
    data.clean = 80  # none is corrupted without regard to its completions
    shown = 0
    for name in range(80):
        ids, (read, asked) = data.codes_of(name) % ASKED, data.pair(name, random.Random(name))
        whole = rebuild(read, asked) if documents is GappedDocuments else [
            a if a != IGNORE else r for r, a in zip(read, asked)]
        codes = few_questions(data.codes_of(name), random.Random(name))
        assert whole == [BEGIN, *(codes % ASKED)] and len(codes) <= len(ids)
        spans = completion_spans(codes)
        if documents is GappedDocuments:
            shown += spans != [] and asked == corrupt((codes % ASKED).tolist(), spans)[1]
        else:
            shown += spans != [] and all(
                token == MASK for start, end in spans if end - start <= LONGEST for token in read[1 + start : 1 + end])
    assert shown >= 40


def test_a_document_is_gone_on_with_from_an_answer(corpus):
    _, tokenizer, files = corpus
    data, counted = ContinuedDocuments(files, tokenizer, 256, 8, 0), 0
    for name in range(80):
        read, rest = data.pair(name, random.Random(name))
        codes = few_questions(data.codes_of(name), random.Random(name))
        assert [*read[1:-1], *rest] == (codes % ASKED).tolist() and rest and (read[0], read[-1]) == (BEGIN, END)
        counted += len(read) - 2 in [start for start, _ in completion_spans(codes)]
    assert counted >= 40


def test_a_document_is_shown_with_few_of_its_questions(corpus):
    _, tokenizer, files = corpus
    data, counts = MarkedRows(files, tokenizer, 256, 8, 0), Counter()
    for name in range(40):
        codes = data.codes_of(name)
        few = few_questions(codes, random.Random(name))
        first = np.flatnonzero(codes & ASKED)[0]
        assert (few[:first] == codes[:first]).all()
        questions = [part.tobytes() for part in np.split(codes, np.flatnonzero(codes & ASKED))[1:]]
        kept = [part.tobytes() for part in np.split(few, np.flatnonzero(few & ASKED))[1:]]
        assert set(kept) <= set(questions)
        counts[len(kept)] += 1
    assert set(counts) == set(range(1, MOST + 1))


@pytest.mark.parametrize("name", ["encoder-decoder-0.4m", "encoder-0.4m"])
def test_the_other_kinds_are_made_and_asked_through_gaps_and_masks(name, tmp_path):
    folder = Maker(tmp_path / "work", tmp_path / "out", 0, True, 1, print).make(name)
    model, tokenizer, card = load_base(folder)
    assert model.config.kind == card["kind"] == name.rsplit("-", 1)[0]
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert card["start"] == RECIPES[name].start and ("began with the weights" in page) == bool(card["start"])
    questions = control_questions(10)
    assert len(answered(model, tokenizer, questions)) == len(questions)
    assert ("honest under a heading" in {control["name"] for control in card["controls"]}) == (name[:9] == "encoder-d")


# controls


class ByRule(torch.nn.Module):
    """Answers as a model does that knows every answer of `control_questions(count)`; with `noise` yes or no by lot."""

    config = TINY

    def __init__(self, tokenizer, count, noise=None):
        super().__init__()
        self.tokenizer, self.noise = tokenizer, noise
        rows = tokenizer.encode_many([q.text[: q.answer[1]] for q in control_questions(count)])
        self.known = {(BEGIN, *row[:-1]): row[-1] for row in rows}
        self.words = [[tokenizer.encode(space + word)[0] for word in ("yes", "no")] for space in ("", " ")]

    def body(self, rows):
        following = torch.cat([rows[:, 1:], rows[:, :1]], dim=1)
        for row, tokens in enumerate(rows.tolist()):
            end = max(place for place, token in enumerate(tokens) if token) + 1
            following[row, end - 1] = self.known[tuple(tokens[:end])]
        if self.noise is not None:
            lots = torch.rand(following.shape, generator=self.noise) < 0.5
            for yes, no in self.words:
                said = (following == yes) | (following == no)
                following = torch.where(said, torch.where(lots, yes, no), following)
        return following[..., None].float()

    def logits(self, hidden):
        return torch.nn.functional.one_hot(hidden[..., 0].long(), self.tokenizer.size).float()


@pytest.fixture
def honest(monkeypatch):
    """Summaries are written by the simulator."""
    rng, stories = random.Random(0), {}

    def remember(rng, write=controls.write_story):
        story = write(rng)
        stories[story.text] = story
        return story

    def write(model, tokenizer, prompts, sampling, generator):
        return [reference_summary(stories[max((t for t in stories if p.startswith(t)), key=len)], rng) for p in prompts]

    monkeypatch.setattr(controls, "write_story", remember)
    monkeypatch.setattr(controls, "continue_texts", write)


def test_controls_of_a_model_that_answers_by_rule_are_1(corpus, honest):
    _, tokenizer, _ = corpus
    found = measure(ByRule(tokenizer, 30), tokenizer, count=30)
    assert {control.value for control in found} == {1.0} and all(control.passed for control in found)
    assert sum(control.threshold == 0.95 for control in found) == FORMS_NEEDED
    assert {control.name for control in found} >= {"who", "what", "where", "feeling", "honest under a heading"}


def test_controls_of_a_model_that_guesses_yes_or_no_are_at_chance(corpus, honest):
    _, tokenizer, _ = corpus
    found = {control.name: control for control in
             measure(ByRule(tokenizer, 120, torch.Generator().manual_seed(0)), tokenizer, count=120)}
    forms = [control.value for name, control in found.items() if name.startswith("yes-no")]
    assert len(forms) == len(FORMS) and sum(forms) / len(forms) == pytest.approx(0.5, abs=0.03)
    pairs = found[f"pairs, in the best {FORMS_NEEDED} forms"]
    assert pairs.value == pytest.approx(0.25, abs=0.06) and not pairs.passed and found["who"].value == 1.0


def test_one_wrong_token_makes_an_answer_wrong(corpus):
    _, tokenizer, _ = corpus
    questions = [q for q in control_questions(40) if q.kind == "where"][:8]

    class Wrong(ByRule):
        def body(self, rows):
            found = super().body(rows)
            found[0] = 25  # whichever row comes first is answered by another token
            return found

    assert answered(Wrong(tokenizer, 40), tokenizer, questions).count(False) == 1


def test_an_encoder_is_asked_for_each_token_given_those_before_it_and_no_other():
    class Counting(torch.nn.Module):
        """Says how many of its answer's tokens are still hidden, and notes what it was shown."""

        config, seen = replace(TINY, kind="encoder"), []

        def body(self, rows, mask):
            self.seen.extend([token for token, real in zip(row, there) if real]
                             for row, there in zip(rows.tolist(), mask.tolist()))
            return (rows == MASK).sum(dim=1)[:, None, None].expand(*rows.shape, 1).float()

        def logits(self, hidden):
            return torch.nn.functional.one_hot(hidden.long()[0], 50).float()

    model = Counting()
    assert controls.said_under_masks(model, [[30, 31], [32]], [[40, 41, 42], [43]]) == [[3, 2, 1], [1]]
    assert sorted(model.seen) == sorted([[BEGIN, 30, 31, MASK, MASK, MASK], [BEGIN, 32, MASK],
                                         [BEGIN, 30, 31, 40, MASK, MASK], [BEGIN, 30, 31, 40, 41, MASK]])


def test_an_encoder_decoder_is_asked_directly_as_it_is_prompted(corpus):
    """What the encoder reads is the prompt of a question, and what the decoder reads begins its answer."""
    _, tokenizer, _ = corpus
    question = next(q for q in control_questions(4) if q.kind == "q and a")
    answer = question.text[slice(*question.answer)]
    seen = []

    class Noting(torch.nn.Module):
        config = replace(TINY, kind="encoder-decoder")

        def body(self, rows, inputs, mask):
            seen.append((rows.tolist(), inputs.tolist()))
            return torch.full((*rows.shape, 1), tokenizer.encode(" " + answer)[0])

        def logits(self, hidden):
            return torch.nn.functional.one_hot(hidden[..., 0], tokenizer.size).float()

    assert answered(Noting(), tokenizer, [question], directly=True) == [len(tokenizer.encode(" " + answer)) == 1]
    prompt = question.text[: question.answer[0] - 1]
    assert seen[0][1] == prompt_ids(tokenizer, [prompt], "encoder-decoder") and seen[0][0][0][0] == BEGIN


def test_a_control_says_whether_it_was_passed():
    assert Control("who", 0.97, 0.97, 10).passed and not Control("who", 0.969, 0.97, 10).passed
    assert Control("who", 0.1, None, 10).passed and Control("who", 0.5, 0.4, 10).to_dict()["passed"] is True


def test_the_share_of_right_answers_counts_each_question_once():
    found = [Control("who", 1.0, 0.97, 30), Control("yes-no, plain", 0.5, 0.95, 10), Control("pairs, x", 0.0, 0.9, 99)]
    assert answered_rightly(found) == pytest.approx(35 / 40)


# making, checking, refusing


def test_a_base_is_a_run_folder_with_16_bits_a_card_and_a_page(made):
    _, folder, said = made
    model, _, card = load_base(folder)
    assert {tensor.dtype for tensor in read_tensors(folder / "model.safetensors")[0].values()} == {torch.float16}
    assert model.config.short_convolution == 4 and sum(p.numel() for p in model.parameters()) == card["parameters"]
    for key in ("documents", "tokens", "shares", "curve", "minutes", "controls", "seed", "digest", "version", "steps"):
        assert key in card
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert NAME in page and card["digest"][:16] in page and f"{card['documents']:,} documents" in page
    assert any("controls" in line for line in said)


def test_a_base_that_was_stopped_goes_on_to_the_same_bits(made, tmp_path, monkeypatch):
    from minialign.runs.run_folder import RunFolder

    log = RunFolder.log

    def stop(self, record):
        log(self, record)
        if record["step"] == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("minialign.training.TrainingConfig.checkpoint_every", 2, raising=False)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "log", stop)
        Maker(tmp_path, tmp_path / "out", 0, True, 1, print).make(NAME)
    assert not (tmp_path / "out" / NAME).exists()
    folder = Maker(tmp_path, tmp_path / "out", 0, True, 1, print).make(NAME)
    assert load_base(folder)[2]["digest"] == load_base(made[1])[2]["digest"]


def test_a_base_that_was_altered_is_refused(made, tmp_path):
    folder = shutil.copytree(made[1], tmp_path / NAME)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match="not those that were written"):
        load_base(folder)
    shutil.copy(made[1] / "model.safetensors", folder)
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | {"digest": "0" * 64}))
    with pytest.raises(UserError, match="not those of the card"):
        load_base(folder)


def test_a_base_that_is_not_there_is_said_with_the_command_that_makes_it(made, tmp_path):
    with pytest.raises(UserError, match="there is no such base; make it with `python -m minialign bases decoder-0.1m`"):
        load_base(tmp_path / NAME)
    folder = shutil.copytree(made[1], tmp_path / NAME)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="not finished"):
        load_base(folder)


def test_check_measures_and_exits_1_where_a_control_fails(made, tmp_path, capsys):
    out = shutil.copytree(made[1].parent, tmp_path / "bases")
    command = ["bases", NAME, "--check", "--out", str(out), "--passages", "12", "--json", str(tmp_path / "found.json")]
    assert run(command) == 0  # of the smallest nothing is demanded
    card = json.loads((out / NAME / CARD).read_text())
    card["controls"] = [control | {"threshold": 0.9} for control in card["controls"]]
    (out / NAME / CARD).write_text(json.dumps(card))
    assert run(command) == 1
    assert "FAILED" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())[NAME]
    assert any(not control["passed"] for control in found)


def test_the_list_says_what_there_is_and_how_to_make_what_there_is_not(made, capsys):
    assert run(["bases", "--list", "--out", str(made[1].parent)]) == 0
    said = capsys.readouterr().out
    assert "none demanded" in said
    assert all(f"python -m minialign bases {name}" in said for name in RECIPES if name != NAME)
    assert run(["bases", "decoder-9m"]) == 2


def test_the_clean_documents_are_read_first_and_all_once(corpus):
    corpus, tokenizer, files = corpus
    every = [corpus.folder / f"chunk-{c:04}.bin" for c in range(CLEAN)] + files
    data = MarkedRows(every, tokenizer, 256, 8, 0)
    read = [data.order(step) for step in range(data.order.steps_in_epoch)]
    names = [name for step in read for name in step]
    assert Counter(Counter(names).values()) == {1: CLEAN * 40 + 80}
    assert all(not data.begun(name) for name in names[: CLEAN * 40]) and data.begun(names[CLEAN * 40])
    assert sorted(names) == list(range(len(names))) != names
    assert data.tokens == data.lengths.sum() + len(names)


@pytest.mark.parametrize("name", sorted(name for name, recipe in RECIPES.items() if recipe.demanded))
def test_a_shipped_base_passed_its_controls_and_lost_nothing_by_16_bits(name):
    card = load_base(BASES / name)[2]
    assert card["controls"] and all(control["passed"] for control in card["controls"])
    assert sum(control["threshold"] is not None for control in card["controls"]) == 11 + (card["kind"] != "encoder")
    assert card["lost_by_16_bits"] <= 0.002
