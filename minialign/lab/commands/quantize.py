"""`python -m minialign quantize RUN --scheme NAME`"""

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import click
from torch import Tensor, nn

from minialign.lab.commands import options as cli
from minialign.lab.commands.inputs import open_base, read_documents
from minialign.lab.fidelity import windows
from minialign.lab.interchange.folder import PretrainedTokenizer
from minialign.lab.interchange.published import describe_published
from minialign.lab.quantization_costs import WINDOW, kernel_note, layer_times, measure, table
from minialign.pretrain.causal_lm import encode_documents
from minialign.quant.half import HALVES, store_half
from minialign.quant.ptq import quantize
from minialign.quant.saving import QUANTIZED, WHAT, save_quantized
from minialign.quant.scheme import SCHEMES, SchemeConfig, scheme_named
from minialign.quant.selection import ALL, KEEP
from minialign.runs.devices import device_of
from minialign.runs.errors import UserError
from minialign.runs.files import write_atomic, write_json
from minialign.runs.run_folder import CONFIG, TOKENIZER, RunFolder
from minialign.runs.settings import to_dict
from minialign.tokenizer import Tokenizer

CHANGEABLE = ("bits", "group", "activation_bits", "observer", "threshold", "outlier_weights", "single_token")
MATTERS = {  # option -> whether it changes anything in a scheme
    "bits": lambda scheme: scheme.method != "nf4",
    "group": lambda scheme: scheme.method != "nf4" and scheme.per == "group",
    "activation_bits": lambda scheme: scheme.method not in ("weights", "nf4"),
    "observer": lambda scheme: scheme.method == "static",
    "threshold": lambda scheme: scheme.method == "llm-int8",
    "outlier_weights": lambda scheme: scheme.method == "llm-int8",
}


@click.command(cls=cli.Command)
@cli.RUN
@cli.choice_option("--scheme", [*SCHEMES, *HALVES], "vector-wise", "What to do to the linear layers.")
@cli.file_option("--text FILE", "Text to measure perplexity, KL and agreement on.")
@cli.file_option("--calibration FILE", "Text that static scales, smoothing, GPTQ's rounding and calibrated outliers "
                 "are learned on; not the one that is measured on.")
@cli.count_option("--tokens", 8192, 2, cli.LARGEST, "Most tokens to read of each text.")
@cli.option("--include", multiple=True,
            text="Pattern of layers to quantize, e.g. '*.attention.*'; may be given again. All without it.")
@cli.option("--keep", multiple=True, text="Pattern of layers that stay as they are, besides heads; may be given again.")
@cli.flag("--embeddings", text="Store the embeddings, and a head that shares them, as int8 weights too.")
@cli.flag("--bench", text="Longer timings, and each shape of layer against fp32.")
@cli.run_options(out=None, otherwise="nowhere: it is measured and forgotten")
@cli.overrides("Instead of the scheme's own", "changes", cli.fields_of(SchemeConfig, *CHANGEABLE))
@cli.gather_options
def command(args):
    """Quantize a model and say what it costs and saves: layer by layer, on the disk, in what it predicts, and in time.

    What is written to --out is a model that `sample`, `ask` and `evaluate` take (and `chat`, when it is SmolLM2). An
    encoder is measured on hidden words, and `sample` fills gaps with it.

    \b
    Example:  python -m minialign quantize runs/pretrain --scheme llm-int8 --text held-out.txt
    Example:  python -m minialign quantize smollm2 --scheme vector-wise --text held-out.txt  (a real model: 93 MB)
    Example:  python -m minialign quantize runs/pretrain --scheme static --calibration some.txt --text held-out.txt
    """
    config = None if args.scheme in HALVES else dataclasses.replace(scheme_named(args.scheme), **args.changes)
    check(config, args)
    model, tokenizer = open_base(args.run)
    if model.config.kind == "encoder-decoder":
        raise UserError("holds an encoder-decoder, and a decoder or an encoder is needed here", args.run)
    most = 512 if args.fast else args.tokens
    rows, batches = (read_windows(file, model, tokenizer, most) for file in (args.text, args.calibration))
    before, result = copy.deepcopy(model), {"run": str(args.run), "scheme": args.scheme,
                                            "settings": None if config is None else dataclasses.asdict(config)}
    if config is None:
        store_half(model, HALVES[args.scheme])
        click.echo(f"all linear layers and embeddings stored in {args.scheme}; computed in fp32, norms and biases stay "
                   f"as they are")
    else:
        # for the outputs' errors; scales are learned on --calibration only
        shown = rows[:4] if batches is None and rows is not None else batches
        model, report = quantize(model, config, None if shown is None else shown.split(4), args.include or ALL,
                                 (*KEEP, *args.keep), args.embeddings)
        click.echo(str(report))
        result["report"] = report.to_dict()
    new_tokens = 8 if args.fast else 48 if args.bench else 24
    result |= measure(before, model, rows, args.seed, 7 if args.bench else 3, new_tokens)
    if args.out is not None:
        with RunFolder(args.out).locked():  # what a fault left half-written goes, and nobody else writes here
            write_quantized(args, model, before, tokenizer, result)
    click.echo("\n" + table(result))
    if args.bench and config is not None:
        click.echo("\n" + layer_times(before, model))
    click.echo(kernel_note(model) + ("" if args.out is None else f"\nwritten to {args.out}"))


def check(config: SchemeConfig | None, args: SimpleNamespace) -> None:
    """Raise UserError for what is wrong with the options themselves, before anything is loaded."""
    if config is None and (args.changes or args.include or args.keep or args.embeddings or args.calibration):
        raise UserError("fp16 and bf16 store every weight; options of integer schemes and patterns do not apply")
    for name in args.changes if config is not None else ():
        if name in MATTERS and not MATTERS[name](config):
            raise UserError(f"{cli.as_flag(name)} changes nothing in the scheme {args.scheme}; leave it out, or choose "
                            f"another --scheme")
    if config is not None and config.calibrated and args.calibration is None:
        raise UserError("this scheme learns from a calibration set; give --calibration FILE, text like that which the "
                        "model will read")
    if args.text is not None and args.calibration is not None and same_content(args.text, args.calibration):
        raise UserError("is also --text: scales that were learned on it would be measured on what they know; give "
                        "another text", args.calibration)
    if args.out is not None and (args.out.is_file() or (args.out / CONFIG).exists()):
        raise UserError("is a file or holds a run; choose another --out", args.out)


def same_content(first: Path, second: Path) -> bool:
    """Whether two paths lead to the same file, or to a copy of it."""
    files = first.is_file() and second.is_file()
    return first.resolve() == second.resolve() or (files and first.read_bytes() == second.read_bytes())


def read_windows(file: Path | None, model: nn.Module, tokenizer: Tokenizer, most: int) -> Tensor | None:
    """(rows, window) ids of a text, its documents one after the other; None without a file."""
    if file is None:
        return None
    ids = [token for document in encode_documents(tokenizer, read_documents(file)) for token in document]
    return windows(ids, min(model.config.context, WINDOW), most).to(device_of(model))


def write_quantized(args: SimpleNamespace, model: nn.Module, before: nn.Module, tokenizer: Tokenizer,
                    result: dict) -> None:
    """The quantized weights, what was measured, and what `load_quantized_folder` needs to build the model again."""
    result["file"] = save_quantized(model, args.out / QUANTIZED, run=str(args.run), scheme=args.scheme)
    write_json(args.out / "report.json", result)
    write_atomic(args.out / TOKENIZER, tokenizer.to_json())
    published = isinstance(tokenizer, PretrainedTokenizer)
    shape = {"published": describe_published(before)} if published else {"model": to_dict(before.config)}
    write_json(args.out / CONFIG, {"what": WHAT, "scheme": args.scheme, "base": str(args.run), **shape,
                                   "tokenizer": tokenizer.fingerprint()})
