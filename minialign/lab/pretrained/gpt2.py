r"""GPT-2's weights in our own decoder: transformer.py with learned positions and GPT-2's gelu is GPT-2.

    theirs                        ours                               what is different
    wte, wpe, ln_f                token_embedding, position_embedding, norm
    h.3.ln_1, h.3.ln_2            blocks.3.attention_norm, feed_forward_norm
    h.3.attn.c_attn  (D, 3D)      blocks.3.attention.query, key, value   one matrix there, stored transposed
    h.3.attn.c_proj  (D, D)       blocks.3.attention.output              transposed
    h.3.mlp.c_fc, c_proj          blocks.3.feed_forward.inner, output    transposed

Radford et al. 2019. It reads folders of `model_type` gpt2: GPT-2 of any size, and DistilGPT2. The end of a text,
<|endoftext|>, is also what begins one and what fills rows up.

Read next: bert.py.
Try it: python -c "from minialign.lab.pretrained.gpt2 import load_gpt2; print(load_gpt2('FOLDER'))"
"""

from pathlib import Path

from torch import Tensor

from minialign.heads import LanguageModel
from minialign.lab.interchange.folder import WEIGHTS, build, own_head, read_folder, renamed
from minialign.runs.errors import UserError
from minialign.tokenizer import SpecialIds
from minialign.transformer import TransformerConfig

NAMES = [  # theirs -> ours
    (r"^transformer\.", ""),
    (r"^wte", "body.token_embedding"),
    (r"^wpe", "body.position_embedding"),
    (r"^ln_f", "body.norm"),
    (r"^h\.(\d+)\.", r"body.blocks.\1."),
    (r"ln_1", "attention_norm"),
    (r"ln_2", "feed_forward_norm"),
    (r"attn\.c_proj", "attention.output"),
    (r"mlp\.c_fc", "feed_forward.inner"),
    (r"mlp\.c_proj", "feed_forward.output"),
]
BUFFERS = r"\.attn\.(bias|masked_bias)$"  # their causal mask


def load_gpt2(folder: Path) -> LanguageModel:
    """GPT-2 from a checkpoint folder, in fp32, in evaluation mode.

    Raises:
        UserError: see `read_folder`; a setting that our decoder does not have; tensors of another model.
    """
    settings, tensors = read_folder(folder, "gpt2")
    settings.must_be("layer_norm_epsilon", (1e-5,))
    settings.must_be("activation_function", ("gelu_new", "gelu_pytorch_tanh"))
    settings.must_be("scale_attn_weights", (True,))
    settings.must_be("scale_attn_by_inverse_layer_idx", (False,))
    width = settings.number("n_embd")
    inner = settings.number("n_inner", 4 * width)
    if inner % width:
        raise UserError(f"n_inner is {inner}; our decoder needs a multiple of n_embd, {width}", settings.file)
    config = TransformerConfig(
        vocabulary=settings.number("vocab_size"),
        context=settings.number("n_positions"),
        width=width,
        layers=settings.number("n_layer", most=len(tensors)),
        heads=settings.number("n_head"),
        positions="learned",
        feed_forward=inner // width,
        activation="gelu_tanh",
        dropout=settings.number("resid_pdrop", 0.1, whole=False, least=0, most=1),
    )
    tensors = renamed(tensors, NAMES, BUFFERS)
    if own_head(tensors, "lm_head.weight", "body.token_embedding.weight", settings):
        raise UserError("its head has a table of its own; our decoder shares it with the token vectors", folder)
    model = build(LanguageModel, config, transposed_and_split(tensors), Path(folder) / WEIGHTS)
    end = config.vocabulary - 1  # <|endoftext|> is the last id of the published vocabulary
    model.special = settings.special("bos_token_id", SpecialIds(end, end, end))
    return model


def transposed_and_split(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices (out, in), where GPT-2 keeps (in, out), and queries, keys and values apart."""
    found = {}
    for name, tensor in tensors.items():
        if name.endswith("output.weight") or name.endswith("inner.weight"):
            tensor = tensor.T.contiguous()
        if ".attn.c_attn." not in name:
            found[name] = tensor
            continue
        parts = tensor.T.chunk(3) if tensor.dim() == 2 else tensor.chunk(3)  # each (D, D) or (D,)
        for which, part in zip(("query", "key", "value"), parts):
            found[name.replace(".attn.c_attn.", f".attention.{which}.")] = part.contiguous()
    return found
