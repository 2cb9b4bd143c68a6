"""`python -m minialign chat smollm2 [--prompt "…"]`"""

import contextlib
import sys
from pathlib import Path

import click
import torch

from minialign.generation import ENDED_AT_ONCE, NO_WORDS, SamplingConfig
from minialign.lab.commands import options as cli
from minialign.lab.commands.inputs import read_input, typed_lines
from minialign.lab.interchange.gguf import read_gguf
from minialign.lab.interchange.gguf_llama import load_gguf
from minialign.lab.interchange.published import load_quantized_folder
from minialign.lab.pretrained.chat import Conversation
from minialign.lab.pretrained.smollm2 import SYSTEM, load_smollm2
from minialign.peft.saving import load as load_tuned
from minialign.quant.saving import QUANTIZED
from minialign.runs.devices import default_device
from minialign.runs.errors import UserError
from minialign.runs.files import read_json
from minialign.runs.run_folder import CONFIG


@click.command(cls=cli.Command)
@click.argument("model")
@cli.TUNED
@cli.option("--prompt", text="Answer this and stop; `-` reads it from standard input. Without it you talk.")
@cli.option("--system", default=SYSTEM, text="What the model is told about itself.")
@cli.seed_option("Same seed and same turns, same replies.")
@cli.configured("Sampling", "sampling", SamplingConfig(new_tokens=256, temperature=0.2, top_p=0.9))
def command(model, tuned, prompt, system, seed, sampling):
    """Talk with a real language model.

    MODEL is smollm2 (93 MB, fetched the first time), the folder that `quantize smollm2 --out` wrote, or a GGUF file of
    a Llama with the same chat marks. Ctrl-C stops a reply, and, where you write, ends the conversation.

    \b
    Example:  python -m minialign chat smollm2 --prompt "Why is the sky blue?"
    """
    speaker, tokenizer = open_model(model)
    speaker.to(default_device())
    if tuned is not None:
        speaker = load_tuned(speaker, tuned).eval()
    conversation = Conversation(speaker, tokenizer, system, sampling, torch.Generator().manual_seed(seed))
    if prompt is None:
        talk(conversation)
    elif not say(conversation, read_input(sys.stdin.read) if prompt == "-" else prompt):
        raise SystemExit(130)


def talk(conversation: Conversation) -> None:
    """One reply to each line, until an empty one."""
    with contextlib.suppress(KeyboardInterrupt):  # `say` takes the one that stops a reply
        for text in typed_lines("An empty line or Ctrl-D ends the conversation; Ctrl-C stops a reply."):
            try:
                say(conversation, text)
            except UserError as error:
                if not sys.stdin.isatty():
                    raise
                click.echo(f"error: {error}", err=True)


def open_model(name: str):
    """A model and its tokenizer. Raises UserError when there is none of this name."""
    if name == "smollm2":
        return load_smollm2()
    folder = Path(name)
    if (folder / QUANTIZED).exists():
        config = read_json(folder / CONFIG)
        base = config.get("base") if isinstance(config, dict) else None
        if base != "smollm2":
            raise UserError(f"was made from {base!r}, which was not taught to chat; try `minialign sample`", name)
        return load_quantized_folder(folder)
    if folder.is_dir():
        raise UserError("was not taught to chat; try `minialign sample` or `ask`, and what `finetune` made of smollm2 "
                        "is given as --tuned", name)
    if not name.endswith(".gguf"):
        raise UserError(f"there is no model {name!r}; give smollm2, the path of a .gguf file, or a folder that "
                        f"`quantize smollm2 --out` wrote")
    gguf = read_gguf(folder)
    if "<|im_start|>" not in str(gguf.facts.get("tokenizer.chat_template")):
        raise UserError("has no chat template with <|im_start|> in it: it was not taught to chat in the way that is "
                        "supported here", name)
    return load_gguf(gguf)


def say(conversation: Conversation, text: str) -> bool:
    """Print the reply as it is written; False when Ctrl-C stopped it."""
    reply, note = "", ENDED_AT_ONCE
    try:
        with contextlib.closing(conversation.reply(text)) as pieces:
            for piece in pieces:
                click.echo(piece, nl=False)
                sys.stdout.flush()
                reply, note = reply + piece, NO_WORDS
        click.echo("" if reply.strip() else note.strip(), nl=False)
        return True
    except KeyboardInterrupt:
        return False
    finally:
        click.echo()
