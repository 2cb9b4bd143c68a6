r"""Transfer: a pretrained model, a method, some data of one's own, and what came of it, in comparable numbers.

    demonstrations (prompt, completion)     the language model's own loss, on the completion alone
    texts with labels (text, label)         a head on the body; −log p(label | text)     Devlin et al. 2019 (BERT), §4.1

Every method gets the same data, the same number of steps and its own learning rate: BitFit and prompt tuning have
little to move and need a large one. What is reported: held-out loss and accuracy, how much trained, bytes of the file,
bytes of AdamW's state (two numbers for each that trains).

Read next: quant/mappings.py.
Try it:  python -m minialign finetune --method all --base RUN --data FILE.jsonl
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from minialign.batching import Batches
from minialign.peft.saving import TENSORS, save
from minialign.peft.trainable import counts, trained
from minialign.runs.files import read_json, write_json
from minialign.runs.processes import first_writes
from minialign.runs.run_folder import CHECKPOINT, RunFolder
from minialign.training import TrainingConfig, train

RESULT = "result.json"
# where a toy model does well
RATES = {"full": 1e-3, "feature-based": 1e-2, "bitfit": 1e-2, "adapters": 3e-3, "lora": 3e-3, "prompt-tuning": 3e-2,
         "dora": 3e-3}


class TunedRun(RunFolder):
    """A run folder that keeps what was tuned in place of the whole model."""

    @property
    def finished(self) -> bool:
        """Whether the tuning ended and left its files."""
        return (self.path / RESULT).exists()

    @first_writes
    def finish(self, model: nn.Module, **facts: Any) -> None:
        """Write what trains, then the facts, and let go of the checkpoint."""
        save(model, self.path)
        write_json(self.path / RESULT, facts)
        (self.path / CHECKPOINT).unlink(missing_ok=True)

    def facts(self) -> dict[str, Any]:
        """What `finish` was told."""
        return read_json(self.path / RESULT)


def tune(model: nn.Module, data: Batches, loss: Callable[[nn.Module, Any], Tensor],
         validate: Callable[[nn.Module], dict[str, float]], config: TrainingConfig, run: TunedRun) -> dict[str, Any]:
    """Train a wrapped model in its run folder and say what it cost.

    Returns:
        the last validation, "trained" and "parameters" (numbers), "optimizer_bytes", "file_bytes", "method".
    """
    some, all_ = counts(model)
    state = sum(2 * p.numel() * p.element_size() for p in trained(model).values())
    facts = {"method": model.tuning.method, "trained": some, "parameters": all_, "optimizer_bytes": state}
    train(model, data, loss, config, run, validate, label=model.tuning.method, complete=lambda model: facts)
    return run.facts() | {"file_bytes": (run.path / TENSORS).stat().st_size}
