"""Folders that others published, in the hands of the commands: ids without a row, quantized ones, heads that are not
there, and whole folders that a command does not take."""

import json

import pytest
import torch
from gguf_files import tiny_file, tiny_llama
from published_folders import bert, gpt2, llama
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Library
from typed import complaint, type_in, write_feelings, write_records

from minialign.generation import SamplingConfig
from minialign.lab.commands import inputs
from minialign.lab.interchange.folder import PretrainedTokenizer
from minialign.lab.interchange.gguf import read_gguf
from minialign.lab.interchange.gguf_llama import load_gguf
from minialign.lab.interchange.peft_library import load_from_library
from minialign.lab.interchange.published import load_published, load_quantized_folder
from minialign.lab.pretrained.t5 import T5, T5Config, load_t5
from minialign.peft import prompt_tuning
from minialign.pretrain.gap_filling import fill_gaps, marks_of
from minialign.pretrain.span_corruption import rebuild
from minialign.quant.ptq import quantize
from minialign.quant.scheme import SCHEMES
from minialign.runs.errors import UserError
from minialign.runs.tensors import tensor_file
from minialign.tokenizer import SpecialIds, Tokenizer, check_rows

SHAPE = "--vocabulary 300 --context 40 --width 16 --heads 2 --layers 1 --steps 3 --batch 4 --validate-every 3"


@pytest.fixture(scope="module")
def d(tmp_path_factory, tokenizer):
    """Whole folders, and some whose ids have no row."""
    d = tmp_path_factory.mktemp("published")
    write_feelings(d)
    gpt2(d / "gpt2", tokenizer), llama(d / "llama"), llama(d / "own-head", own_head=True), bert(d / "bert")
    grown = Library.from_str(tokenizer.to_json())
    grown.add_tokens(["<ticket>", "<bug>"])
    gpt2(d / "ticket", tokenizer)
    (d / "ticket" / "tokenizer.json").write_text(grown.to_str())
    gpt2(d / "defaults", tokenizer, bos_token_id=50256, eos_token_id=50256)
    llama(d / "llama-defaults", bos_token_id=128000, eos_token_id=128001)
    assert type_in(f"pretrain --text {{d}}/text.txt {SHAPE} --out {{d}}/run", d) == 0
    assert type_in("finetune --base {d}/run --data {d}/demos.jsonl --steps 2 --batch 4 --validate-every 2 "
                   "--checkpoint-every 2 --out {d}/tuned", d) == 0
    return d


# ids without a row


@pytest.mark.parametrize("command", ["sample {folder} --prompt sad", "ask {folder} --prompt sad --options a,b",
                                     "finetune --base {folder} --data {d}/demos.jsonl --method prompt-tuning",
                                     "evaluate {folder} --text {d}/text.txt",
                                     "quantize {folder} --text {d}/text.txt --fast"])
@pytest.mark.parametrize("folder, words", [
    ("ticket", "the tokenizer gives '<ticket>' the id 320, '<bug>' the id 321, and the model's table has 320 rows"),
    ("defaults", "the settings give begin the id 50256, end the id 50256, and the model's table has 320 rows, for the "
                 "ids 0 to 319; correct bos_token_id, eos_token_id"),
    ("llama-defaults", "the settings give begin the id 128000, end the id 128001, and the model's table has 263"),
])
def test_ids_without_a_row_are_named_when_a_folder_is_loaded(d, capsys, command, folder, words):
    assert type_in(command, d, folder=d / folder) == 2
    said = complaint(capsys)
    assert words in said and str(d / folder) in said


def test_the_ids_of_every_kind_of_model_are_checked(d, tokenizer, tmp_path):
    with pytest.raises(UserError, match="begin the id 999"):
        load_gguf(read_gguf(tiny_file(tmp_path / "tiny.gguf", **{"tokenizer.ggml.bos_token_id": 999})))
    check_rows(tokenizer, 320, "x")
    with pytest.raises(UserError, match=r"x: the tokenizer gives .* the id 315, .* the id 317 and 2 more, and the mod"):
        check_rows(tokenizer, 315, "x")
    with pytest.raises(UserError, match="the settings give mask the id 320"):
        check_rows(tokenizer, 320, "x", mask=320)
    library = Library.from_str((d / "bert" / "tokenizer.json").read_text())
    words = json.loads(library.to_str())
    words["model"]["vocab"] = {word.replace("[CLS]", "<s>"): i for word, i in words["model"]["vocab"].items()}
    words["added_tokens"] = [token for token in words["added_tokens"] if token["content"] != "[CLS]"]
    (bert(tmp_path / "bert") / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(UserError, match="begin the id 101, end the id 102, mask the id 103"):
        load_published(tmp_path / "bert")


def test_a_run_whose_tokenizer_has_more_tokens_than_its_model_is_refused(d, capsys, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    grown = Library.from_str((d / "run" / "tokenizer.json").read_text())
    grown.add_tokens(["<ticket>"])
    (run / "tokenizer.json").write_text(grown.to_str())
    (run / "model.safetensors").write_bytes((d / "run" / "model.safetensors").read_bytes())
    config = json.loads((d / "run" / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"tokenizer": Tokenizer(grown).fingerprint()}))
    assert type_in("sample {run} --prompt sad", run=run) == 2
    assert "the tokenizer gives '<ticket>' the id " in complaint(capsys)


def test_an_id_beyond_the_vocabulary_is_never_read_as_a_vector_of_the_tuned_prompt(decoder):
    wrapped = prompt_tuning.wrap(decoder, prompt_tuning.PromptConfig(4))
    with pytest.raises(UserError, match="the token id 321 has no row in the model's table of 320"):
        wrapped(torch.tensor([[30, 321]]))


# quantized ones


@pytest.mark.parametrize("scheme", ["vector-wise", "4-bit-weights --embeddings", "llm-int8", "bf16"])
@pytest.mark.parametrize("folder", ["gpt2", "llama", "own-head"])
def test_a_quantized_published_model_is_sampled_asked_and_evaluated(d, capsys, tmp_path, folder, scheme):
    assert type_in(f"quantize {{d}}/{folder} --scheme {scheme} --fast --out {{q}}", d, q=tmp_path) == 0
    capsys.readouterr()
    assert type_in("sample {q} --prompt sad --new-tokens 4", q=tmp_path) == 0
    assert capsys.readouterr().out.startswith("sad")
    assert type_in("ask {q} --prompt sad --options yes,no", q=tmp_path) == 0 and "%  yes" in capsys.readouterr().out
    assert type_in("evaluate {q} --text {d}/text.txt", d, q=tmp_path) == 0 and "perplexity" in capsys.readouterr().out
    assert type_in("finetune --base {q} --data {d}/demos.jsonl", d, q=tmp_path) == 2
    assert "holds a quantized model" in complaint(capsys)


@pytest.mark.parametrize("folder", ["gpt2", "llama", "own-head", "bert"])
def test_a_quantized_published_model_reads_back_to_the_same_numbers(d, tmp_path, folder):
    assert type_in(f"quantize {{d}}/{folder} --scheme vector-wise --fast --out {{q}}", d, q=tmp_path) == 0
    (before, words), (after, own) = load_published(d / folder), load_quantized_folder(tmp_path)
    assert own.special == words.special == after.special == before.special and own.to_json() == words.to_json()
    assert getattr(after, "hidden_word", None) == getattr(before, "hidden_word", None)
    tokens = torch.randint(before.config.vocabulary, (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(after(tokens), quantize(before, SCHEMES["vector-wise"])[0](tokens))


def test_a_quantized_real_model_talks_without_the_one_that_it_was_made_from(d, capsys, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setitem(inputs.PRETRAINED, "smollm2", lambda: (tiny_llama(), load_published(d / "llama")[1]))
        assert type_in("quantize smollm2 --fast --out {q}", q=tmp_path) == 0
    monkeypatch.setitem(inputs.PRETRAINED, "smollm2", None)
    for command in ("sample {q}", "ask {q} --options a,b", "chat {q} --system S --new-tokens 4"):
        assert type_in(command + " --prompt sad", q=tmp_path) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("change, words", [
    (lambda config: config["published"].pop("shape"), "does not say what was quantized"),
    (lambda config: config["published"].update(special=[999, 2, 2]), "begin the id 999"),
    (lambda config: config.update(tokenizer="0" * 16), "tokenizer.json is not the one of this model"),
    (lambda config: config.pop("published"), "does not say what was quantized"),
])
def test_a_quantized_folder_that_was_altered_is_one_clear_line(d, capsys, tmp_path, change, words):
    assert type_in("quantize {d}/llama --fast --out {q}", d, q=tmp_path) == 0
    config = json.loads((tmp_path / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type_in("sample {q} --prompt sad", q=tmp_path) == 2 and words in complaint(capsys)


def test_published_models_fill_gaps_by_marks_of_their_own(d, tmp_path, tokenizer, capsys):
    model, words = load_published(d / "bert")
    greedy, chance = SamplingConfig(1, temperature=0), torch.Generator()
    logits = model(torch.tensor([[8, 2, 10, 4, 9]]))[0, 2]  # [CLS] the [MASK] kite [SEP]
    likeliest = next(i for i in logits.argsort(descending=True).tolist() if i not in (0, 1, 8, 9, 10))
    assert fill_gaps(model, words, "the ___ kite", 1, greedy, chance) == [f"the {words.name(likeliest)} kite"]
    assert type_in("quantize {d}/bert --fast --out {q}", d, q=tmp_path) == 0
    capsys.readouterr()
    assert type_in("sample {q} --prompt 'the ___ kite'", q=tmp_path) == 0
    assert len(capsys.readouterr().out.split()) == 3
    t5 = T5(T5Config(64, 32, width=8, head_size=4, heads=2, inner=8, encoder_layers=1, layers=1))
    marked = Library.from_str(load_published(d / "llama")[1].to_json())
    theirs = PretrainedTokenizer(marked, SpecialIds(0, 2, 0), ends_prompts=True)
    with pytest.raises(UserError, match="no marks for gaps"):
        fill_gaps(t5, theirs, "the ___ kite", 1, greedy, chance)
    marked.add_special_tokens([f"<extra_id_{i}>" for i in range(16)])
    marks = marks_of(t5, theirs)
    assert list(marks.gaps) == list(range(263, 279)) and marks.before == [] and marks.after == [2]
    assert rebuild([5, 263, 6, 264], [264, 8, 263, 7, 7], marks.gaps) == [5, 7, 7, 6, 8]


# heads


@pytest.mark.parametrize("said, own, words", [
    (False, False, "tie_word_embeddings is false.*the weights hold none"),
    (True, True, "tie_word_embeddings is true.*differs from the table"),
])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_what_a_folder_says_of_its_head_is_held_against_its_weights(tmp_path, tokenizer, kind, said, own, words):
    folder = tmp_path / kind
    if kind == "llama":
        llama(folder, own, tie_word_embeddings=said)
    else:
        gpt2(folder, tokenizer, tie_word_embeddings=said)
        if own:
            tensors = load_file(folder / "model.safetensors")
            save_file(tensors | {"lm_head.weight": tensors["wte.weight"] + 1}, folder / "model.safetensors")
    with pytest.raises(UserError, match=words) as error:
        load_published(folder)
    assert str(error.value).startswith(str(folder / "config.json"))


@pytest.mark.parametrize("said, words", [
    ({"tie_word_embeddings": False}, "tie_word_embeddings is false"),
    ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, "scale_decoder_outputs is false"),
])
def test_a_t5_and_a_bert_whose_head_is_lost_are_refused(d, tmp_path, said, words):
    shape = {"model_type": "t5", "vocab_size": 9, "d_model": 8, "d_kv": 4, "num_heads": 2, "d_ff": 8, "num_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(shape | said))
    save_file({"shared.weight": torch.zeros(9, 8)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=words):
        load_t5(tmp_path)
    config = json.loads((bert(tmp_path / "bert") / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(UserError, match="tie_word_embeddings is false"):
        load_published(tmp_path / "bert")


def test_a_head_that_equals_the_table_or_of_which_nothing_is_said_is_taken(tmp_path, tokenizer):
    gpt2(tmp_path / "gpt2", tokenizer, tie_word_embeddings=False)
    file = tmp_path / "gpt2" / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["wte.weight"].clone()}, file)
    load_published(tmp_path / "gpt2")
    assert load_published(llama(tmp_path / "llama", own_head=True, tie_word_embeddings=None))[0].head is not None
    assert load_published(llama(tmp_path / "tied", tie_word_embeddings=None))[0].head is None


def test_a_tensor_that_the_index_lists_and_no_file_holds_is_named(d, tmp_path):
    folder = tmp_path / "llama"
    llama(folder, tie_word_embeddings=None)
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    names = [*load_file(folder / "model-1.safetensors"), "lm_head.weight"]
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names,
        "model-1.safetensors")}))
    with pytest.raises(UserError, match="index.json: lists lm_head.weight, which is in none of the files"):
        load_published(folder)


# healthy folders, and the command that takes them


@pytest.mark.parametrize("line", [
    "sft --base {d}/gpt2 --demonstrations {d}/demos.jsonl", "reward --base {d}/gpt2 --comparisons {d}/demos.jsonl",
    "compare {d}/gpt2 {d}/run --prompts {d}/text.txt",
    "ppo --policy {d}/gpt2 --reward {d}/run --prompts {d}/text.txt", "instruct --base {d}/gpt2 --style flan --fast",
    "distill --teacher {d}/gpt2 --text {d}/text.txt", "label {d}/gpt2 --prompts {d}/text.txt",
])
def test_a_command_for_runs_says_which_ones_take_a_published_folder(d, capsys, tmp_path, line):
    out = "" if line.startswith("compare") else f" --out {tmp_path}/out"
    assert type_in(line + out, d) == 2
    assert complaint(capsys) == (f"{d}/gpt2: holds a model that others published (gpt2), and a run of this project is "
                                 f"needed here; `finetune`, `quantize`, `sample`, `ask` and `evaluate` take it")


@pytest.mark.parametrize("folder, words", [
    ("tuned/lora", "holds what `finetune` trained by lora, and not the model below it; give it to `sample`, `ask`"),
    ("tuned", "is no run itself; give one of those in it: lora"),
    ("text.txt", "is a file, and the folder of a run is needed here"),
    ("llama/tiny.gguf", "is a GGUF file; `chat` takes one, and the folder of a run is needed here"),
    ("adapter", "holds an adapter of the PEFT library"),
    ("nowhere", "there is no such run folder; make one with `minialign pretrain`"),
])
def test_a_healthy_folder_of_another_kind_is_called_by_what_it_is(d, capsys, folder, words):
    (d / "adapter").mkdir(exist_ok=True)
    (d / "adapter" / "adapter_config.json").write_text("{}")
    for command in ("sample {d}/{folder} --prompt sad", "quantize {d}/{folder}"):
        assert type_in(command, d, folder=folder) == 2
        assert words in (said := complaint(capsys)) and "copy" not in said
    if folder in ("tuned", "adapter", "nowhere"):
        for command in ("sample", "ask"):
            assert type_in(f"{command} {{d}}/run --tuned {{d}}/{folder} --prompt sad", d) == 2
            assert f"{folder}/tuned.json: there is no such file; give the folder of a method" in complaint(capsys)


# the PEFT library


@pytest.mark.parametrize("settings, words", [
    ({"lora_alpha": 8}, "adapter_config.json: setting 'r' is missing"),
    ({"r": 2}, "'lora_alpha' is missing"),
    ({"r": "2", "lora_alpha": 8}, "'r' is '2'; it must be a whole number"),
    ({"r": 2, "lora_alpha": 8, "lora_dropout": "much"}, "'lora_dropout' is 'much'"),
])
def test_an_adapter_s_settings_are_checked(d, tmp_path, settings, words):
    model, name = load_published(d / "llama")[0], "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{name}.lora_A.weight": torch.zeros(2, 32), f"{name}.lora_B.weight": torch.zeros(32, 2)}
    (tmp_path / "adapter_model.safetensors").write_bytes(tensor_file(tensors))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **settings}))
    with pytest.raises(UserError, match=words):
        load_from_library(model, tmp_path, "llama")


# improved: a LoRA learns, and the folder stays as it is


IMPROVE = {
    "dpo": "--comparisons {d}/choices.jsonl --batch 4 --steps 4 --validate-every 2 --checkpoint-every 1 "
           "--learning-rate 0.01",
    "kto": "--judged {d}/thumbs.jsonl --batch 4 --steps 4 --validate-every 2 --checkpoint-every 1 --learning-rate 0.01",
    "grpo": "--prompts {d}/asked.jsonl --check regex --updates 3 --batch 8 --completions 8 --minibatch 32 "
            "--new-tokens 6 --learning-rate 0.01",
}


@pytest.fixture(scope="module")
def judgements(d):
    """Comparisons, thumbs and prompts with a pattern, of a few words."""
    rows = [(f"kite {n}", " over", " barn") for n in range(60)]
    files = {"choices": [{"prompt": p, "chosen": good, "rejected": bad} for p, good, bad in rows],
             "thumbs": [{"prompt": p, "completion": say, "liked": say == good} for p, good, bad in rows
                        for say in (good, bad)],
             "asked": [{"prompt": p, "regex": "[aeiou].*[aeiou]"} for p, *_ in rows]}
    for name, lines in files.items():
        write_records(d / f"{name}.jsonl", lines)
    return d


@pytest.mark.parametrize("command", IMPROVE)
@pytest.mark.parametrize("folder", ["gpt2", "llama"])
def test_a_lora_learns_on_a_published_policy(judgements, folder, command, capsys):
    d = judgements
    before = {path.name: path.read_bytes() for path in (d / folder).iterdir()}
    out = f"{command}-{folder}"
    assert type_in(f"{command} --policy {{d}}/{folder} --rank 2 {IMPROVE[command]} --out {{d}}/{out}", d) == 0
    assert f"sample {d / folder} --tuned {d / out}" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (d / folder).iterdir()} == before
    tensors = load_file(d / out / "tuned.safetensors")
    assert {name.rsplit(".", 1)[1] for name in tensors} == {"A", "B"}
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if name.endswith(".B"))
    assert type_in(f"sample {{d}}/{folder} --tuned {{d}}/{out} --prompt kite --new-tokens 4", d) == 0


def test_a_policy_that_cannot_write_is_refused(judgements, capsys):
    wrong = "dpo --policy {d}/bert " + IMPROVE["dpo"] + " --out {d}/none"
    assert type_in(wrong, judgements) == 2 and "a decoder is needed here" in complaint(capsys)
    assert not (judgements / "none").exists()
