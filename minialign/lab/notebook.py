r"""What the notebooks need and nothing else does: source shown from the files themselves, figures as pictures, the fast
setting, toy models made in seconds, what the claims found in full, and their execution.

    from minialign.lab.notebook import FAST, picture, source

A notebook that is committed carries its outputs and a fingerprint of the code that made them: the two can be compared
without running anything (test_no_committed_notebook_shows_what_other_code_made).

Try it:  python -m minialign notebooks --fast
"""

import hashlib
import inspect
import os
import tempfile
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from minialign.generation import prompt_ids
from minialign.heads import LanguageModel, ScalarModel, describe_model, load_model
from minialign.lab.claims import Bench
from minialign.lab.claims.feedback import first_half
from minialign.lab.claims.over_optimisation import held_out_watcher
from minialign.lab.demo.evaluation import gold_score_watcher
from minialign.lab.demo.pipeline import Demo, FirstHalf, ppo_settings
from minialign.lab.demo.settings import DemoConfig
from minialign.lab.plotting import as_png
from minialign.lab.stages import stage_run
from minialign.pretrain.causal_lm import NextToken
from minialign.pretrain.pretrain import pretrain
from minialign.rlhf.ppo import train_ppo
from minialign.runs.devices import default_device
from minialign.runs.errors import UserError
from minialign.runs.files import read_json, write_atomic
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import Tokenizer, train_tokenizer
from minialign.training import TrainingConfig
from minialign.transformer import TransformerConfig
from minialign.world.corpus import documents

# quick settings, too small to decide anything: `minialign notebooks --fast`
FAST = os.environ.get("MINIALIGN_FAST") == "1"
SECONDS = 600  # most that a cell may take
USUAL = 20 if FAST else 200  # steps of `toy_decoder`
HELD_OUT = 8 if FAST else 50  # test stories that `toy_policy` looks at after each update
KEY = "minialign"  # of the fingerprint, in a notebook's metadata
# the main job, smaller
FEEDBACK = {"base": "decoder-0.1m", "documents": 50, "demonstrations": 320, "summaries": 1.0, "judged": 64,
            "completions": 3, "prompts": 32, "evaluated": 24, "sft_steps": 20, "reward_steps": 4, "ppo_updates": 2}
if not FAST:
    FEEDBACK |= {"base": "decoder-0.4m", "demonstrations": 5600, "judged": 1200, "prompts": 512, "evaluated": 150,
                 "sft_steps": 350, "reward_steps": 75, "ppo_updates": 15}
ASKED, RATE = 16, 3e-4  # half of the prompts of the main job's rollouts, and a higher rate: a minute has to show it


class source:  # noqa: N801   used like a function
    """The source of some functions or classes, as it stands in their files: it cannot drift from what runs.

    Args:
        objects: functions, classes or methods.
        doc: with their docstrings.
    """

    def __init__(self, *objects: Any, doc: bool = True):
        shown = []
        for one in objects:
            code = textwrap.dedent(inspect.getsource(one))
            if not doc and one.__doc__:  # its own: `getdoc` would find that of a class above
                start = code.index('"""', code.index(":\n"))
                code = code[:start].removesuffix("r").rstrip() + code[code.index('"""', start + 3) + 3 :]
            where = Path(inspect.getsourcefile(inspect.unwrap(one))).as_posix().rpartition("minialign/")[2]
            shown.append(f"# minialign/{where}\n{code.rstrip()}")
        self.text = "\n\n".join(shown)

    def __repr__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        return f"```python\n{self.text}\n```"


class picture:  # noqa: N801   used like a function
    """A figure as a picture in a notebook, in the style of the claims' figures.

    Args:
        figure: of `plotting.figure`, or the path of a PNG file.
    """

    def __init__(self, figure: Figure | Path):
        self.bytes = as_png(figure, dpi=110) if isinstance(figure, Figure) else Path(figure).read_bytes()

    def __repr__(self) -> str:
        return "a picture"  # for readers without pictures; the default would be an address, another one in every run

    def _repr_png_(self) -> bytes:
        return self.bytes


def code_fingerprint(notebook: Any) -> str:
    """Sixteen hex digits of a notebook's code cells."""
    code = "\n\0".join(cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def execute(path: Path, out: Path, fast: bool) -> float:
    """Run a notebook in a fresh kernel and write it with its outputs, whole or not at all.

    Args:
        path: of the notebook; out: where it is written, may be the same.
        fast: quick settings.
    Returns:
        seconds that it took.
    Raises:
        UserError: nbclient is not installed, a cell that failed, or one that wrote to the error stream (a warning is a
            fault here).
    """
    try:
        import nbformat
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    except ImportError:
        raise UserError("notebooks are run by nbclient and ipykernel; install what requirements.txt names") from None

    notebook = nbformat.read(path, as_version=4)
    environment = os.environ | {"MINIALIGN_FAST": "1" if fast else "0"}
    started, used = time.perf_counter(), children_seconds()
    try:
        where = {"metadata": {"path": str(path.resolve().parent)}}
        NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=where).execute(env=environment)
    except CellExecutionError as error:
        raise UserError(f"a cell failed: {error.ename}: {error.evalue[:300]}", path) from None
    except CellTimeoutError:
        raise UserError(f"a cell took more than {SECONDS} seconds", path) from None
    except DeadKernelError:
        raise UserError("the kernel died, as it does when there is not enough memory", path) from None
    seconds, processor = time.perf_counter() - started, children_seconds() - used
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran: noise in every diff
        if "outputs" in cell:
            cell.outputs = joined(cell.outputs)
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise UserError(f"a cell wrote to the error stream: {output['text'].strip()[:300]!r}; notebooks show "
                                f"no warnings", path)
    notebook.metadata = {"kernelspec": notebook.metadata.get("kernelspec"), "language_info": {"name": "python"}}
    notebook.metadata[KEY] = {"executed": code_fingerprint(notebook), "fast": fast, "seconds": round(seconds),
                              "processor_seconds": round(processor)}
    write_atomic(out, nbformat.writes(notebook) + "\n")
    return seconds


def joined(outputs: list[Any]) -> list[Any]:
    """A cell's outputs, what was printed in a row as one; what was printed behind a picture stays behind it."""
    found: list[Any] = []
    for output in outputs:
        if found and output.output_type == found[-1].output_type == "stream" and output.name == found[-1].name:
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def children_seconds() -> float:
    """Processor time of the processes that this one has started and that have ended, all cores together; 0 where the
    system does not tell (Windows)."""
    used = os.times()
    return used.children_user + used.children_system


def toy_decoder(steps: int = 0, width: int = 64, layers: int = 2, seed: int = 0, losses: list[float] | None = None,
                **shape: Any) -> tuple[LanguageModel, Tokenizer, list[str]]:
    """A small decoder that has read some hundred documents of the toy world, in seconds.

    Args:
        steps: of 16 documents; 0 takes USUAL.
        losses: takes the training loss of each step, nats a token; shape: more fields of its TransformerConfig.
    Returns:
        the model, its tokenizer, and documents that it has not seen.
    """
    texts = [document["text"] for document in documents(900, seed)]
    tokenizer = train_tokenizer(texts, 768)
    shape = {"heads": 4, "activation": "relu", "initial_std": 0.1, "short_convolution": 4} | shape
    config, steps = TransformerConfig(tokenizer.size, 192, width, layers, **shape), steps or USUAL
    model = LanguageModel(config, seed).to(default_device())
    training = TrainingConfig(steps, 16, 4e-3, validate_every=steps, checkpoint_every=steps, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        pretrain(model, tokenizer, texts[100:], texts[:100], training, run, NextToken(packed=False))
        if losses is not None:
            losses.extend(record["loss"] for record in run.metrics())
    return model.eval(), tokenizer, texts[:100]


def toy_feedback(cache: Path, seed: int = 0, **settings: Any) -> tuple[Demo, FirstHalf]:
    """The first half of the main job at the notebooks' size: a model tuned on demonstrations, and comparisons of its
    completions.

    It is made once, and read afterwards as long as neither a setting nor a line of the code behind it changes.

    Args:
        cache: folder for what is made; seed: of everything.
        settings: of `DemoConfig`, in place of those of the notebooks.
    Returns:
        the job, whose `train_reward` and `train_policy` go on from there, and what it made.
    """
    config = DemoConfig(**{**FEEDBACK, "seed": seed, **settings})
    folder, made = first_half(Bench(Path(cache), Path(cache), fast=FAST), config)
    return Demo(folder, config, lambda text: None), made


def toy_policy(job: Demo, made: FirstHalf, reward: ScalarModel, beta: float,
               updates: int = 0) -> tuple[LanguageModel, list[dict[str, Any]]]:
    """The policy after PPO at a price of KL; trained once for each price, and read afterwards.

    Args:
        job, made: from `toy_feedback`; reward: the job's reward model.
        beta: price of one nat of KL, in standard deviations of the reward.
        updates: rollouts; 0: as many as the job has.
    Returns:
        the policy, and its log, one record an update, with the gold score of each rollout, which PPO itself never sees,
        and what it then makes of test stories.
    """
    prompts = prompt_ids(made.tokenizer, [d["prompt"] for d in made.practice])
    updates = updates or job.config.ppo_updates
    run = RunFolder(job.folder / f"5-ppo-beta-{beta:g}-{updates}")
    settings = ppo_settings(updates, len(prompts), beta, job.config.seed, job.config.from_base, ASKED)
    settings = replace(settings, learning_rate=RATE)
    with stage_run(run, made.tokenizer, **describe_model(made.instructed), stage="ppo", settings=settings):
        if not run.finished:
            own = gold_score_watcher(made.tokenizer, made.practice)
            held_out = held_out_watcher(made, reward, made.tests[:HELD_OUT], job.config.seed)
            train_ppo(made.instructed, reward, prompts, settings, run, watch=lambda *seen: own(*seen) | held_out(*seen))
    return load_model(run.path)[0], run.metrics()


def kept_claim(id: str, data: Path) -> tuple[str, picture | None]:
    """What the last full run of a claim found.

    Args:
        id: of the claim; data: folder of the kept results, a folder for each claim.
    Returns:
        the claim with its verdict, the numbers that decided and what was not shown, and its figure; without a full run
        how to make one, and None.
    """
    verdict, figure = (Path(data) / id / name for name in ("verdict.json", "figure.png"))
    if not verdict.exists():
        return f"{id}: no full run is kept here yet; python -m minialign claims {id} makes one", None
    found = read_json(verdict)
    missed = "; ".join(name for name, shown in found["checks"].items() if shown is False)
    said = [found["claim"], f"{id}, {found['seeds']} seeds: {found['verdict']}. {found['why']}",
            *([f"Not shown: {missed}."] if missed else [])]
    text = "\n".join(textwrap.fill(line, 120, subsequent_indent="    ") for line in said)
    return text, picture(figure) if figure.exists() else None
