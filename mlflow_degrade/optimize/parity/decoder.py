"""How far a saved model is from the one it was made from.

Both are loaded from disk, as a user would load them, and run over the same real texts: what is
compared is the file, not the object that was in memory before it was written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.errors import InputError, ModelError, NonFiniteLogitsError, ParityError
from ...engine.lengths import exact_length
from ...engine.ort_values import run_arrays
from ...engine.providers import CPU, open_session
from ...engine.schedule import one_text
from ...engine.session import cache_inputs, read_json
from ..onnx_graph.files import GRAPH_FILE
from ..source.weight_files import load_whole
from .prompts import BEYOND, LONGEST_COMPARED, PARITY_PROMPTS, USUALLY_COMPARED, window_compared

# Logits of a causal language model, from its PyTorch source or from its ONNX file.

Tokens = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


class OnnxForward:
    """A model directory's ``model.onnx`` in onnxruntime."""

    def __init__(
        self,
        directory: str | Path,
        providers: tuple[str, ...] = (CPU,),
        *,
        threads: int | None = None,
    ) -> None:
        self._folder = Path(directory)
        path = self._folder / GRAPH_FILE
        self._session: Any = open_session(path, providers, threads=threads)
        self._cache = cache_inputs(self._session, self._folder)

    def _run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        outputs = ["logits", *(entry.output for entry in self._cache)]
        return run_arrays(self._session, feeds, outputs)

    def _fed(self, tokens: Tokens) -> dict[str, npt.NDArray[Any]]:
        return one_text(self._session, self._folder, tokens)

    def logits(self, tokens: Tokens) -> Logits:
        """Logits of shape (tokens, vocabulary) for token ids of shape (tokens,)."""
        found: Logits = self._run(self._fed(tokens))[0][0].astype(np.float32, copy=False)
        return found

    def logits_with_past(self, tokens: Tokens, split: int) -> Logits:
        """The same, with the tokens before `split` read from the key-value cache."""
        first, *present = self._run(self._fed(tokens[:split]))
        whole = self._fed(tokens) | {e.name: p for e, p in zip(self._cache, present, strict=True)}
        for name in {"input_ids", "position_ids"} & whole.keys():  # the mask is of all tokens
            whole[name] = whole[name][:, split:]
        second = self._run(whole)[0]
        return np.concatenate([first[0], second[0]]).astype(np.float32, copy=False)


class TorchForward:
    """A Hugging Face directory in PyTorch, fp32, on the CPU."""

    def __init__(self, directory: str | Path) -> None:
        self._model: Any = load_whole(directory)

    def logits(self, tokens: Tokens) -> Logits:
        import torch

        with torch.inference_mode():
            found = self._model(torch.from_numpy(tokens)[None], use_cache=False).logits[0]
        return np.asarray(found.numpy(), dtype=np.float32)

    def logits_with_past(self, tokens: Tokens, split: int) -> Logits:
        import torch

        with torch.inference_mode():
            first = self._model(torch.from_numpy(tokens[:split])[None], use_cache=True)
            second = self._model(
                torch.from_numpy(tokens[split:])[None], past_key_values=first.past_key_values
            )
            found = torch.cat([first.logits[0], second.logits[0]])
        return np.asarray(found.numpy(), dtype=np.float32)


Forward = OnnxForward | TorchForward


def open_forward(directory: str | Path, providers: tuple[str, ...] = (CPU,)) -> Forward:
    """`OnnxForward` where the directory holds a ``model.onnx``, `TorchForward` otherwise."""
    if (Path(directory) / GRAPH_FILE).is_file():
        return OnnxForward(directory, providers)
    return TorchForward(directory)


EXPORT_TOLERANCE = 1e-3
"""Largest difference between any two logits that an fp32 export may show."""

BROKEN_KL = 10.0
"""Mean KL in nats above which a result is an accident, not a trade-off: a model that answers
uniformly over 50,000 tokens is about as far from a good one."""

_MAX_TOKENS = 128
_ROWS = 64  # positions whose probabilities are held at once: 64 x 150k x 8 bytes = 77 MB


@dataclass(frozen=True)
class Parity:
    """Agreement of a candidate with its reference on the same positions.

    Attributes
    ----------
    max_abs_logit_difference : float
        Over all positions and the whole vocabulary.
    mean_kl : float
        Mean over positions of KL(reference || candidate) between the next-token distributions,
        in nats.
    top1_agreement : float
        Share of positions where both predict the same token.
    n_positions : int
        Positions compared.
    """

    max_abs_logit_difference: float
    mean_kl: float
    top1_agreement: float
    n_positions: int

    @property
    def max_abs_difference(self) -> float:
        """`max_abs_logit_difference`, under the name it has for encoders too."""
        return self.max_abs_logit_difference

    @property
    def broken(self) -> str | None:
        """What makes the candidate an accident, not a trade-off; None when it is none."""
        if self.mean_kl <= BROKEN_KL:
            return None
        return f"the limit is a mean KL of {BROKEN_KL:g}"

    def as_dict(self) -> dict[str, float | int]:
        """The four numbers, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"mean KL {self.mean_kl:.3g} nats, top-1 agreement {self.top1_agreement:.1%}, largest "
            f"logit difference {self.max_abs_logit_difference:.3g} over {self.n_positions} "
            "positions"
        )


def parity(
    reference: str | Path,
    candidate: str | Path,
    prompts: Sequence[str] | None = None,
    *,
    providers: tuple[str, ...] = (CPU,),
    with_past: bool = False,
    longest: int = USUALLY_COMPARED,
) -> Parity:
    """Compare two saved models on real texts."""
    # The two models are loaded one after the other; only the reference's logits, some hundred
    # positions of them, are kept in between.
    _require_same_vocabulary(Path(reference), Path(candidate))
    expected, texts = _reference(reference, prompts, providers, longest)
    return _compare(expected, texts, open_forward(candidate, providers), str(candidate), with_past)


def check_parity(
    reference: str | Path,
    candidate: str | Path,
    prompts: Sequence[str] | None = None,
    *,
    tolerance: float = EXPORT_TOLERANCE,
    providers: tuple[str, ...] = (CPU,),
) -> Parity:
    """Require that two saved models compute the same, with and without a key-value cache.

    Parameters
    ----------
    reference, candidate, prompts, providers
        As in `parity`.
    tolerance : float
        Largest difference allowed between any two logits.

    Returns
    -------
    Parity
        The worse of the two comparisons.

    Raises
    ------
    ParityError
        When a logit differs by more than `tolerance`.
    """
    _require_same_vocabulary(Path(reference), Path(candidate))
    expected, texts = _reference(reference, prompts, providers, LONGEST_COMPARED)
    model = open_forward(candidate, providers)
    # What is longer than a window is read in both ways at once.
    short = [text for text in texts if not text.beyond]
    whole = _compare(expected[: len(short)], short, model, str(candidate), with_past=False)
    cached = _compare(expected, texts, model, str(candidate), with_past=True)
    worse = max(whole, cached, key=lambda found: found.max_abs_logit_difference)
    if worse.max_abs_logit_difference > tolerance:
        path = "with" if worse is cached else "without"
        raise ParityError(
            f"{candidate} does not reproduce {reference} ({path} a key-value cache): {worse}; the "
            f"limit is {tolerance:g}. {probable_cause(Path(reference))}"
        )
    return worse


def probable_cause(reference: Path) -> str:
    """A sentence for an export that does not reproduce its source."""
    config = read_json(reference, "config.json", needed=True)
    what = "architecture is"
    if length := window_compared(config):
        what = f"architecture, or its attention window, which a text of {length:,} tokens tries, is"
    return f"The {what} probably not exported correctly by these versions of Optimum and PyTorch."


def _require_same_vocabulary(reference: Path, candidate: Path) -> None:
    """Raise unless both configs name as many tokens, before an id is out of range."""
    configs = [read_json(folder, "config.json", needed=True) for folder in (reference, candidate)]
    sizes = [config.get("vocab_size") for config in configs]
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"{candidate} has a vocabulary of {sizes[1]}, its reference {reference} of {sizes[0]}: "
            "they are not the same model."
        )


@dataclass(frozen=True)
class _Text:
    """Token ids, and where they are parted to continue a cache."""

    # Of a text that is longer than an attention window, the end is compared.

    tokens: Tokens
    split: int
    start: int = 0
    beyond: bool = False


def _reference(
    directory: str | Path,
    prompts: Sequence[str] | None,
    providers: tuple[str, ...],
    longest: int,
) -> tuple[list[Logits], list[_Text]]:
    """Logits of the reference on each text, and the texts."""
    chosen = PARITY_PROMPTS if prompts is None else prompts
    texts = [_Text(ids, len(ids) // 2) for ids in prompt_tokens(Path(directory), chosen)]
    if (beyond := _beyond_window(Path(directory), longest)) is not None:
        texts.append(beyond)
    model = open_forward(directory, providers)
    in_one_step = [replace(text, beyond=False) for text in texts]
    return list(_all_logits(model, in_one_step, str(directory), with_past=False)), texts


def _beyond_window(directory: Path, longest: int) -> _Text | None:
    """The parity texts one after the other, as often as it takes."""
    config = read_json(directory, "config.json", needed=True)
    length = window_compared(config, longest)
    if length is None:
        return None
    joined = np.concatenate(prompt_tokens(directory, PARITY_PROMPTS))
    # As many positions within the window as beyond it; half of these on top of a cache that is
    # longer than the window.
    split, start = max(1, length - BEYOND // 2), max(0, length - 2 * BEYOND)
    return _Text(np.resize(joined, length), split, start, beyond=True)


def _compare(
    expected: list[Logits], texts: list[_Text], model: Forward, name: str, with_past: bool
) -> Parity:
    """Agreement of `model` with the logits expected of it."""
    totals = np.zeros(2)
    largest = 0.0
    for want, got in zip(expected, _all_logits(model, texts, name, with_past), strict=True):
        largest = max(largest, float(np.abs(want - got).max()))
        totals += _kl_and_agreement(want, got)
    positions = sum(map(len, expected))
    kl, same = totals / positions
    return Parity(largest, float(kl), float(same), positions)


def prompt_tokens(directory: Path, prompts: Sequence[str]) -> list[Tokens]:
    """Token ids of each prompt that has at least two, cut after 128, or where the export ends."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    most = exact_length(read_json(directory, "config.json", needed=True)) or _MAX_TOKENS
    ids = [tokenizer(text)["input_ids"][: min(most, _MAX_TOKENS)] for text in prompts]
    tokens = [np.asarray(i, np.int64) for i in ids if len(i) > 1]
    if not tokens:
        raise InputError(f"none of {len(prompts)} prompts has two tokens: give longer texts.")
    return tokens


def _all_logits(model: Forward, texts: list[_Text], name: str, with_past: bool) -> Iterator[Logits]:
    """Logits of each text where they are compared, checked to be finite."""
    for text in texts:
        ids = text.tokens
        found = (
            model.logits_with_past(ids, text.split)
            if with_past or text.beyond
            else model.logits(ids)
        )
        found = found[text.start :]
        if not np.isfinite(found).all():
            bad = int((~np.isfinite(found)).any(axis=1).sum())
            raise NonFiniteLogitsError(
                f"{name} gives NaN or infinite logits at {bad} of {len(found)} positions of a "
                "plain text: the model is broken, or its numbers leave the range of its data type."
            )
        yield found


def _kl_and_agreement(want: Logits, got: Logits) -> tuple[float, float]:
    """Sum of KL(want || got) over positions, and the number of equal top predictions."""
    kl = 0.0
    for start in range(0, len(want), _ROWS):
        p = _log_softmax(want[start : start + _ROWS])
        q = _log_softmax(got[start : start + _ROWS])
        kl += float((np.exp(p) * (p - q)).sum())
    same = float((want.argmax(axis=1) == got.argmax(axis=1)).sum())
    return kl, same


def _log_softmax(logits: Logits) -> np.ndarray:
    """Row-wise log-softmax in float64: KL is a difference of nearly equal numbers."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
