r"""A base is made: it reads its corpus once, is measured, and becomes a small folder that can be shipped.

    runs/bases/seed-0/corpus/      tokenizer and documents, shared by all bases of a seed
    runs/bases/seed-0/NAME/        the training; goes on where it stopped, to the same bits
    data/bases/NAME/               config.json, tokenizer.json, card.json, README.md and the weights in 16 bits

Details that matter:
    1. The weights are written last and their digest stands in the card: what is half-written or altered is refused, and
       never used (test_a_base_that_was_altered_is_refused).
    2. The controls are measured with 32 and with 16 bits. Over all their questions together they may differ by .002: a
       single control has too few questions to tell that from one that flips.
    3. Two processes with averaged gradients where there are two cores: the second one is started here, does the same,
       and ends with the first.

Try it: `python -m minialign bases --list`.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import minialign
from minialign.heads import LanguageModel, describe_model, load_model
from minialign.lab.bases.card import readme
from minialign.lab.bases.controls import PASSAGES, Control, answered_rightly, measure
from minialign.lab.bases.gaps import GappedDocuments, MaskedDocuments
from minialign.lab.bases.growing import grow
from minialign.lab.bases.optimizer import MuonAndAdamW
from minialign.lab.bases.recipes import RECIPES, Recipe
from minialign.lab.bases.texts import Corpus, MarkedRows
from minialign.pretrain.causal_lm import Loss, mean_loss, next_token_loss
from minialign.pretrain.masked_lm import masked_lm_loss
from minialign.pretrain.span_corruption import text_to_text_loss
from minialign.runs.devices import default_device
from minialign.runs.errors import UserError
from minialign.runs.files import read_json, write_atomic, write_json
from minialign.runs.run_folder import CONFIG, MODEL, TOKENIZER, RunFolder
from minialign.runs.settings import to_dict
from minialign.runs.tensors import digest, read_tensors, tensor_file, tensors_of
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig, train

BASES = Path(minialign.__file__).parents[1] / "data" / "bases"
CARD, README = "card.json", "README.md"
LEARNED = {"decoder": (MarkedRows, next_token_loss), "encoder-decoder": (GappedDocuments, text_to_text_loss),
           "encoder": (MaskedDocuments, masked_lm_loss)}  # kind -> how it reads the documents, and its loss
TRIALS = read_json(Path(__file__).with_name("trials.json"))  # base -> what else was tried, for its card
LOOK = 60  # passages of a look at the controls while a base is trained


class Maker:
    """Makes bases of a seed.

    Args:
        work: where texts and trainings are kept; out: where finished bases go.
        fast: too small and too short to read, in seconds.
        processes: 1, 2, or 0 for two where there are two cores and it is worth it.
        say: is told what happens.
    """

    def __init__(self, work: Path, out: Path, seed: int, fast: bool, processes: int, say: Callable[[str], None]):
        self.folder, self.out, self.seed, self.say = Path(work) / f"seed-{seed}", Path(out), seed, say
        self.corpus = Corpus(self.folder / ("corpus-fast" if fast else "corpus"), seed, *((160, 40) if fast else ()))
        self.look = LOOK // 6 if fast else LOOK
        alone = fast or default_device().type != "cpu"
        self.fast, self.processes = fast, processes or (1 if alone else min(2, os.cpu_count() or 1))

    def make(self, name: str) -> Path:
        """A base, unless it is there; returns its folder."""
        recipe = RECIPES[name].fast if self.fast else RECIPES[name]
        folder = self.out / name
        if (folder / MODEL).exists():
            card = load_base(folder)[2]
            if card["seed"] != self.seed:
                raise UserError(f"{name} in this folder is of another seed, {card['seed']}; choose another --out",
                                self.out)
            self.say(f"{name}: made already ({card['documents']:,} documents); another --out makes it again")
            return folder
        start = load_base(self.make(recipe.start)) if recipe.start else None
        tokenizer, files = self.corpus.write(recipe.read)
        if start is not None and start[1].to_json() != tokenizer.to_json():
            raise UserError(f"{recipe.start} in this folder is of another seed and has other tokens; choose another "
                            f"--out", self.out)
        run = RunFolder(self.folder / name)
        command = ["bases", name, "--work", str(self.folder.parent), "--out", str(self.out), "--seed", str(self.seed),
                   *(["--fast"] if self.fast else []), "--processes", str(self.processes)]
        with run.locked(), second_process(command, self.processes):
            model = LanguageModel(recipe.shape(tokenizer.size), self.seed)
            if start is not None:
                grow(model, start[0])
            model.to(default_device())
            documents, loss = LEARNED[recipe.kind]
            data = documents(files, tokenizer, model.config.context, recipe.batch, self.seed)
            config = recipe.training(data.order.steps_in_epoch, self.seed)
            run.begin({**describe_model(model), "stage": "base", "training": to_dict(config),
                       "muon_rate": recipe.muon_rate, "chunks": len(files),
                       "start": start and start[2]["digest"]}, tokenizer)
            if not run.finished:
                self.say(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters read "
                         f"{data.tokens / 1e6:.0f} million tokens")
                self.train(model, tokenizer, data, loss, recipe, config, run)
        if int(os.environ.get("RANK", 0)) == 0:
            self.ship(name, recipe, run, data)
        return folder

    def train(self, model: LanguageModel, tokenizer: Tokenizer, data: MarkedRows, loss: Loss,
              recipe: Recipe, config: TrainingConfig, run: RunFolder) -> None:
        """The training, with a look at held-out documents and at the controls now and then."""
        held_out = self.corpus.held_out(type(data), tokenizer, model.config.context)

        def look(model: LanguageModel) -> dict:
            shown = {control.name: round(control.value, 3) for control in measure(model, tokenizer, count=self.look)}
            return {"validation": mean_loss(model, held_out, loss), "controls": shown}

        optimizer = MuonAndAdamW(model, config.learning_rate, recipe.muon_rate, config.weight_decay)
        train(model, data, loss, config, run, look, label=run.path.name, optimizer=optimizer)

    def ship(self, name: str, recipe: Recipe, run: RunFolder, data: MarkedRows) -> None:
        """Measure the finished run and write the folder that is shipped, the weights last."""
        self.say(f"{name}: measuring the controls")
        model, tokenizer = load_model(run.path)
        count = LOOK // 2 if self.fast else PASSAGES
        whole = measure(model, tokenizer, recipe.demanded, count)
        half = {key: tensor.half() for key, tensor in tensors_of(model).items()}
        with torch.no_grad():
            for key, tensor in tensors_of(model).items():
                tensor.copy_(half[key])
        controls = measure(model, tokenizer, recipe.demanded, count)
        folder = RunFolder(self.out / name)
        folder.path.mkdir(parents=True, exist_ok=True)
        (folder.path / MODEL).unlink(missing_ok=True)
        card = {**self.describe(name, recipe, run, data), "controls": [control.to_dict() for control in controls],
                "lost_by_16_bits": round(abs(answered_rightly(whole) - answered_rightly(controls)), 4),
                "changed_by_16_bits": round(max(abs(a.value - b.value) for a, b in zip(whole, controls)), 4),
                "digest": digest(half)}
        for part in (CONFIG, TOKENIZER):
            write_atomic(folder.path / part, (run.path / part).read_bytes())
        write_json(folder.path / CARD, card)
        write_atomic(folder.path / README, readme(card))
        write_atomic(folder.path / MODEL, tensor_file(half, facts={"base": name}))
        failed = [control for control in controls if not control.passed]
        self.say(f"{name}: {folder.path}, " + (f"{len(failed)} controls failed" if failed else "all controls passed"))

    def describe(self, name: str, recipe: Recipe, run: RunFolder, data: MarkedRows) -> dict:
        """What the card says besides what was measured at the end."""
        metrics = run.metrics()
        looks = [{"step": m["step"], "loss": round(m["loss"], 4), "validation": round(m["validation"], 4),
                  "controls": m["controls"]} for m in metrics if "controls" in m]
        model = read_json(run.path / CONFIG)["model"]
        tensors = read_tensors(run.path / MODEL)[0]
        median = sorted(m["tokens_per_second"] for m in metrics)[len(metrics) // 2]
        return {"name": name, "kind": recipe.kind, "parameters": sum(t.numel() for t in tensors.values()),
                "documents": len(data.lengths), "tokens": data.tokens, "shares": self.corpus.shares(recipe.read),
                "start": recipe.start, "steps": len(metrics), "batch": recipe.batch,
                "learning_rate": recipe.rate, "muon_rate": recipe.muon_rate, "seed": self.seed,
                "processes": self.processes, "tokens_per_second": median, "minutes": round(data.tokens / median / 60),
                "shape": model, "trials": TRIALS.get(name, []), "curve": looks, "version": 1}


def load_base(folder: Path) -> tuple[LanguageModel, Tokenizer, dict]:
    """A shipped base: model, tokenizer and card.

    Raises:
        UserError: it is not there, half-written, altered, or not what its card says.
    """
    folder = Path(folder)
    if not (folder / MODEL).exists():
        what = "this base was not finished" if folder.is_dir() else "there is no such base"
        raise UserError(f"{what}; make it with `python -m minialign bases {folder.name}`, or in the main job's "
                        f"own folder with --from-scratch", folder)
    card = read_json(folder / CARD)
    model, tokenizer = load_model(folder, "language-model")
    if not isinstance(card, dict) or card.get("digest") != read_tensors(folder / MODEL)[1].get("sha256"):
        raise UserError("the weights are not those of the card; restore the folder from a copy, or remove it and make "
                        "it again", folder)
    return model, tokenizer, card


def digest_of(name: str) -> str:
    """Of the weights of a shipped base, for the key of what is made from it."""
    return load_base(BASES / name)[2]["digest"]


def check(folder: Path, count: int, seed: int) -> list[Control]:
    """The controls of a shipped base, measured now."""
    model, tokenizer, card = load_base(folder)
    demanded = any(control["threshold"] is not None for control in card["controls"])
    return measure(model, tokenizer, demanded, count, seed)


@contextmanager
def second_process(command: list[str], processes: int) -> Iterator[None]:
    """Inside, another process runs the command as rank 1 of two: with one thread each they are faster than one
    process with two threads."""
    if processes < 2 or "RANK" in os.environ:
        yield
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    other = subprocess.Popen([sys.executable, "-m", "minialign", *command],
                             env={**os.environ, **world, "RANK": "1", "OMP_NUM_THREADS": "1"})
    os.environ.update(world, RANK="0")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for key in (*world, "RANK"):
            os.environ.pop(key, None)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        try:
            other.wait(timeout=30)
        except subprocess.TimeoutExpired:
            other.kill()
