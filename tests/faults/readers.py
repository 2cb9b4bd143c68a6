"""Everything that reads a file or a request from outside, as functions of bytes: what a fuzzer feeds. A reader returns,
or raises what the command line turns into one line; anything else is a find.

Where a reader takes a folder, one file of a good folder is the bytes.
"""

import contextlib
import io
import itertools
import json
import re
import shutil
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
import torch  # noqa: E402
from gguf_files import tiny_file  # noqa: E402
from published_folders import bert, gpt2, llama  # noqa: E402

from minialign.heads import LanguageModel, describe_model, load_model  # noqa: E402
from minialign.lab.commands.inputs import read_documents, read_lines, read_prompts  # noqa: E402
from minialign.lab.interchange.gguf import read_gguf  # noqa: E402
from minialign.lab.interchange.gguf_llama import load_gguf  # noqa: E402
from minialign.lab.interchange.peft_library import load_from_library, save_for_library  # noqa: E402
from minialign.lab.interchange.promptsource import read_promptsource  # noqa: E402
from minialign.lab.interchange.published import load_published, load_quantized_folder  # noqa: E402
from minialign.lab.interchange.tasks_file import fill, read_tasks  # noqa: E402
from minialign.lab.labelling.agreement import read_votes  # noqa: E402
from minialign.lab.labelling.page import create_app  # noqa: E402
from minialign.lab.labelling.reward import LiveReward  # noqa: E402
from minialign.lab.labelling.store import LabelStore, read_pairs  # noqa: E402
from minialign.lab.pretrained.gpt2 import load_gpt2  # noqa: E402
from minialign.peft import lora  # noqa: E402
from minialign.peft.saving import load as load_tuned  # noqa: E402
from minialign.peft.saving import save as save_tuned  # noqa: E402
from minialign.quant.ptq import quantize  # noqa: E402
from minialign.quant.saving import save_quantized  # noqa: E402
from minialign.quant.scheme import SCHEMES  # noqa: E402
from minialign.rlhf.comparisons import read_comparisons  # noqa: E402
from minialign.rlhf.kto import read_judged_answers  # noqa: E402
from minialign.runs.errors import UserError  # noqa: E402
from minialign.runs.files import read_jsonl, write_json, write_jsonl  # noqa: E402
from minialign.runs.run_folder import RunFolder  # noqa: E402
from minialign.runs.tensors import read_tensors, tensor_file, tensors_of  # noqa: E402
from minialign.tokenizer import load_tokenizer, train_tokenizer  # noqa: E402
from minialign.transformer import TransformerConfig  # noqa: E402
from minialign.world.templates import load_templates  # noqa: E402

PAIRS = [{"prompt": f"p{i}", "first": "a", "second": "b", "first_policy": "x", "second_policy": "y"} for i in range(8)]
LINES = [
    {"text": "Mira walks.", "prompt": "Where?", "completion": " Here.", "chosen": " a", "rejected": " b", "liked": True,
     "label": "good", "annotator": "Ada", "confidence": 3, "task": "spam", "answer": "yes", "options": ["yes", "no"],
     "cluster": "mail", "regex": "k.*e"},
    {"prompt": "p0", "first": "a", "second": "b", "first_policy": "x", "id": 0, "pair": 0, "again": False, "tab": "t",
     "choice": "first", "annotator": "Ada", "chosen": "a", "rejected": "b", "shown_first": "chosen", "time": "now"},
    {"prompt": [{"role": "user", "content": "p"}], "chosen": [{"role": "assistant", "content": "c"}],
     "rejected": [{"role": "assistant", "content": "d"}]},
    {"undo": 0, "annotator": "Ada"},
]  # fmt: skip
TEMPLATES = {"spam": [{"name": "plain", "input": "{text}\nIs this spam?", "target": "{answer}", "style": "",
                       "inverted": False}], "other": "spam"}
YAML = b"""templates:
  a: !Template
    name: n
    jinja: '{{premise}} Does it follow that {{hypothesis}}? ||| {{ answer_choices[label] }}'
    answer_choices: Yes ||| No
    metadata: !TemplateMetadata {original_task: true}
  b: !Template
    name: m
    jinja: '{% for w in text.split(" ") %}{{ w|upper ~ loop.index }}{% endfor %} ||| {{ [text, 1]|choice }}'
"""


class Readers:
    """All readers over one folder with good files; `readers` and `seeds` by name."""

    def __init__(self, folder: Path):
        self.folder, self.count = Path(folder), itertools.count()
        self.readers, self.seeds = {}, {}
        self.lines()
        self.templates()
        self.runs()
        self.published()
        self.page()

    def add(self, name: str, read, *seeds: bytes) -> None:
        """A reader of a file, and good files to begin from."""
        self.readers[name], self.seeds[name] = read, [*seeds]

    def file(self, content: bytes, name: str) -> Path:
        """A file with these bytes."""
        path = self.folder / name
        path.write_bytes(content)
        return path

    def lines(self) -> None:
        """JSONL of each kind."""
        seeds = [json.dumps(line).encode() for line in LINES]
        seeds += [b"\n".join(seeds[:2]) + b"\n", b"plain text\n\nof two paragraphs\n", b"\xef\xbb\xbf" + seeds[0]]
        kinds = {"documents": read_documents, "prompts": read_prompts, "comparisons": read_comparisons,
                 "labelled": read_lines, "pairs": read_pairs, "tasks": read_tasks,
                 "votes": lambda path: read_votes([path]), "labels": self.read_labels, "judged": self.read_judged,
                 "any lines": self.read_any}
        for name, read in kinds.items():
            self.add(name, lambda content, read=read: read(self.file(content, "lines.jsonl")), *seeds)

    def read_any(self, path: Path) -> None:
        """What is read is what stands there."""
        records = read_jsonl(path)
        lines = [line for line in re.split(r"\r\n|[\r\n]", path.read_bytes().decode("utf-8-sig")) if line.strip()]
        assert json.dumps([*records]) == json.dumps([json.loads(line) for line in lines]), "a silent change"

    def read_labels(self, path: Path) -> None:
        """A file of labels, which is opened to go on."""
        before = path.read_bytes()
        store = LabelStore(path, PAIRS, "Ada", 0)
        try:
            store.progress(), store.question("t")
            whole = before[: before.rfind(b"\n") + 1]
            assert path.read_bytes() in (before, before + b"\n", whole), "a silent change"
        finally:
            store.close()

    def read_judged(self, path: Path) -> None:
        """Completions with a thumb up or down."""
        read_judged_answers(path, self.tokenizer, 64)

    def templates(self) -> None:
        """Templates in JSON and in YAML, and examples for them."""
        example = {"premise": "a", "hypothesis": "b", "label": 1, "text": "A b"}

        def jinja(content):
            for template in read_promptsource(self.file(content, "t.yaml"), "t")[0]:
                with contextlib.suppress(UserError):
                    fill({"t": [example]}, {"t": [template]}, skip_unfit=True)

        def plain(content):
            for task, templates in load_templates(self.file(content, "t.json")).items():
                with contextlib.suppress(UserError):
                    fill({task: [LINES[0]]}, {task: templates})

        self.add("templates in YAML", jinja, YAML)
        self.add("templates in JSON", plain, json.dumps(TEMPLATES).encode())

    def one_of(self, folder: Path, name: str, load, label: str) -> None:
        """A reader of a folder whose file `name` is the bytes; the rest is good."""
        good = (folder / name).read_bytes()

        def read(content):
            (folder / name).write_bytes(content)
            try:
                load(folder)
            finally:
                (folder / name).write_bytes(good)

        self.add(f"{label}: {name}", read, good)

    def runs(self) -> None:
        """Our own folders: a run, what finetune left, a quantized model."""
        torch.manual_seed(0)
        self.tokenizer = train_tokenizer(["Mira walks home. Where is Ben?"] * 4, vocabulary=280)
        model = LanguageModel(TransformerConfig(280, 32, 8, 1, 1), 0).eval()
        run = RunFolder(self.folder / "run")
        run.begin(describe_model(model), self.tokenizer)
        run.finish(model)
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            self.one_of(run.path, name, load_model, "run")
        self.add("tensors", lambda content: read_tensors(self.file(content, "x.safetensors")),
                 tensor_file({"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(2, dtype=torch.int8)}))
        self.add("a tokenizer", lambda content: load_tokenizer(self.file(content, "x.json")).encode("Mira é"),
                 (run.path / "tokenizer.json").read_bytes())
        wrapped, tuned = lora.wrap(LanguageModel(model.config, 0), lora.LoRAConfig(rank=2)), self.folder / "tuned"
        save_tuned(wrapped, tuned)
        for name in ("tuned.json", "tuned.safetensors"):
            self.one_of(tuned, name, lambda folder: load_tuned(LanguageModel(model.config, 0), folder), "tuned")
        small, again = quantize(LanguageModel(model.config, 0), SCHEMES["weights"], None)[0], self.folder / "quantized"
        again.mkdir()
        save_quantized(small, again / "quantized.safetensors")
        shutil.copy(run.path / "tokenizer.json", again)
        config = json.loads((run.path / "config.json").read_text())
        write_json(again / "config.json", config | {"what": "quantized-model"})
        for name in ("config.json", "quantized.safetensors"):
            self.one_of(again, name, load_quantized_folder, "quantized")

    def published(self) -> None:
        """Folders and files of others."""
        made = {"gpt2": gpt2(self.folder / "gpt2", self.tokenizer), "llama": llama(self.folder / "llama"),
                "bert": bert(self.folder / "bert")}
        for kind, folder in made.items():
            self.one_of(folder, "config.json", load_published, kind)
        self.one_of(made["llama"], "tokenizer.json", load_published, "llama")
        self.one_of(made["bert"], "model.safetensors", load_published, "bert")
        adapter, whole = self.folder / "adapter", load_gpt2(made["gpt2"])
        save_for_library(lora.wrap(load_gpt2(made["gpt2"]), lora.LoRAConfig(rank=2)), adapter, "gpt2")
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            self.one_of(adapter, name, lambda folder: load_from_library(rebuilt(whole), folder, "gpt2"), "adapter")
        self.add("GGUF", self.read_gguf, tiny_file(self.folder / "good.gguf").read_bytes())

    def read_gguf(self, content: bytes) -> None:
        """A GGUF file, its model and its tokenizer."""
        load_gguf(read_gguf(self.file(content, "x.gguf")))

    def page(self) -> None:
        """Requests to the labelling page: a method, a path and a body, each on a line of its own."""
        folder = self.folder / "page"
        folder.mkdir()
        write_jsonl(folder / "pairs.jsonl", PAIRS)
        self.store = LabelStore(folder / "labels.jsonl", read_pairs(folder / "pairs.jsonl"), "Ada", 0)
        client = create_app(self.store, LiveReward(folder, folder, "Ada", PAIRS), "secret", 8123).test_client()
        good = {"Host": "127.0.0.1:8123", "Origin": "http://127.0.0.1:8123", "Content-Type": "application/json"}

        def read(content):
            first, _, body = content.partition(b"\n")
            method, _, path = first.decode("latin-1").partition(" ")
            before = self.store.path.read_bytes()
            answer = client.open(path="/" + re.sub(r"[?#\\]", "", path).lstrip("/"), data=body, headers=good,
                                 method="POST" if method == "POST" else "GET",
                                 query_string={"token": "secret", "tab": "t"})
            after = self.store.path.read_bytes()
            assert answer.status_code in (200, 308, 400, 404, 405, 409, 413, 415), answer.status_code
            assert answer.status_code < 400 or (answer.json["error"] and after == before), "refused, and changed"
            assert after.startswith(before), "a silent change"

        bodies = [{"tab": "t", "key": "0a", "choice": "first", "confidence": 5, "seconds": 1.5}, {"tab": "t"}]
        posts = [f"POST {path}\n{json.dumps(body)}".encode() for body in bodies
                 for path in ("api/label", "api/undo", "api/release")]
        self.add("page", read, *posts, b"GET api/question\n", b"GET \n")


def rebuilt(model):
    """A GPT-2 with the same weights, to be changed."""
    fresh = LanguageModel(model.config).eval()
    with torch.no_grad():
        for name, tensor in tensors_of(fresh).items():
            tensor.copy_(tensors_of(model)[name])
    return fresh


def expected(error: Exception) -> bool:
    """Whether the command line says such an error in one line (minialign/__main__.py, `answer`)."""
    return (isinstance(error, UserError | OSError | MemoryError)
            or re.search("allocate memory|Storage size calculation overflowed", str(error)) is not None)


@contextlib.contextmanager
def silence():
    """Nothing on the terminal."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
