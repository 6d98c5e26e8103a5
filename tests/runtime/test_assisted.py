"""Assisted texts are, token for token, those of the model alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import ModelDir
from tiny_models import LLAMA_SIZES, SENTENCES, make_tiny_decoder, make_tiny_llama

from mlflow_degrade.core.errors import InputError, UnsupportedModelError
from mlflow_degrade.engine.assisted import Assistant, DraftModel, PromptLookup, Proposal, Reader
from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.engine.generation import Sampling, Stopping, generated
from mlflow_degrade.engine.ort_values import array_of
from mlflow_degrade.engine.schedule import Tokens
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.source.resolve import resolve_model

CUTS = (4, 11, 18, 25, 32, 39, 46, 50)
PROMPTS = [s[:cut] for cut in CUTS for s in SENTENCES[:4]]
EXACT = ("fp32", "int8-weight-only", "int4-weight-only")

Made = Callable[..., Path]


class Mixed(Assistant):
    """Proposes what it was told that the text will be, with mistakes."""

    def __init__(self, texts: list[Tokens], mistakes: float, vocabulary: int) -> None:
        super().__init__(tokens=6, cost=0.0, adaptive=False)
        self._texts, self._mistakes, self._vocabulary = texts, mistakes, vocabulary
        self._draw = random.Random(0)

    def propose(self, text: Tokens, most: int, choose: Any) -> Proposal:  # noqa: ARG002
        known = tuple(text)
        whole = next((t for t in self._texts if tuple(t[: len(known)]) == known), known)
        found = [*whole[len(known) : len(known) + self._draw.randint(0, most)]]
        for place in range(len(found)):
            if self._draw.random() < self._mistakes:
                found[place] = self._draw.randrange(self._vocabulary)
        return Proposal(found)


def _decoder(folder: Path) -> OnnxDecoder:
    return OnnxDecoder(folder, device="cpu")


def _texts(
    decoder: OnnxDecoder,
    prompts: list[list[int]],
    how: Sampling,
    assistant: Assistant | None = None,
) -> list[tuple[int, ...]]:
    if assistant is None:
        found = [made for p in prompts for batch in generated(decoder, [p], how) for made in batch]
        return [made.tokens for made in found]
    found = [made for batch in generated(decoder, prompts, how, assistant) for made in batch]
    return [made.tokens for made in sorted(found)]


def _mixed(decoder: OnnxDecoder, prompts: list[list[int]], plain: list[tuple[int, ...]]) -> Mixed:
    whole = [(*p, *t) for p, t in zip(prompts, plain, strict=True)]
    return Mixed(list(whole), 0.3, decoder.config["vocab_size"])


@pytest.fixture
def made(model_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(model_cache))

    def make(source: Path, *, level: str = "fused") -> Path:
        exported = export_onnx(resolve_model(str(source)), progress=False)
        return optimize_graph(exported, level, progress=False)

    return make


@pytest.fixture
def draft_dir(made: Made, tmp_path: Path) -> Path:
    """A model of other weights and one layer, with the tokenizer of the tiny Llama."""
    return made(make_tiny_llama(tmp_path / "draft", seed=7, layers=1))


class TestGreedyTexts:
    @pytest.mark.parametrize(
        ("scheme", "stop"),
        [
            ("fp32", ()),
            ("int8-weight-only", ("e",)),
            ("int4-weight-only", ("he", "\n", " of")),
            pytest.param("bf16", (), marks=pytest.mark.slow),
        ],
    )
    def test_mistaken_proposals_change_no_token(
        self, model_dir: ModelDir, scheme: str, stop: tuple[str, ...]
    ) -> None:
        decoder = _decoder(model_dir(scheme))
        prompts = decoder.encoder.encode(PROMPTS)
        how = Sampling(max_new_tokens=14, stop=stop)
        plain = _texts(decoder, prompts, how)
        assistant = _mixed(decoder, prompts, plain)
        assert _texts(decoder, prompts, how, assistant) == plain
        counts = assistant.counts
        assert 0 < counts["accepted"] < counts["proposed"]
        assert counts["passes"] < counts["tokens"]

    @pytest.mark.parametrize("scheme", EXACT)
    def test_a_draft_and_the_prompt_change_no_token(
        self, model_dir: ModelDir, scheme: str, draft_dir: Path
    ) -> None:
        decoder = _decoder(model_dir(scheme))
        prompts = decoder.encoder.encode([f"{p} {p} {p[:5]}" for p in PROMPTS[::6]])
        how = Sampling(max_new_tokens=20)
        plain = _texts(decoder, prompts, how)
        other = "int4-weight-only" if scheme == "fp32" else "fp32"
        for assistant in (
            DraftModel(_decoder(draft_dir), adaptive=False),
            DraftModel(_decoder(model_dir(other))),
            PromptLookup(shortest=1),
        ):
            assert _texts(decoder, prompts, how, assistant) == plain
            assert assistant.counts["tokens"] + len(prompts) == sum(map(len, plain))
            assert assistant.counts["proposed"] > 0

    @pytest.mark.filterwarnings("ignore")  # torch's tracer comments on every model
    @pytest.mark.parametrize(
        ("family", "sizes", "level"),
        [
            ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}, "fused"),
            ("gemma2", {**LLAMA_SIZES, "head_dim": 16, "sliding_window": 8}, "fused"),
            pytest.param(
                *("mistral", {**LLAMA_SIZES, "sliding_window": 8}, "none"), marks=pytest.mark.slow
            ),
        ],
    )
    def test_families(
        self, family: str, sizes: dict[str, Any], level: str, made: Made, tmp_path: Path
    ) -> None:
        """With windows, with learned positions, and with attention that is not one node."""
        decoder = _decoder(made(make_tiny_decoder(family, tmp_path / "m", **sizes), level=level))
        prompts = decoder.encoder.encode(PROMPTS[::4])
        how = Sampling(max_new_tokens=24)
        plain = _texts(decoder, prompts, how)
        assistant = _mixed(decoder, prompts, plain)
        assert _texts(decoder, prompts, how, assistant) == plain
        assert 0 < assistant.counts["accepted"] < assistant.counts["proposed"]

    def test_the_end_inside_of_what_was_accepted(self, model_dir: ModelDir) -> None:
        decoder = _decoder(model_dir("fp32"))
        prompts = decoder.encoder.encode(PROMPTS)
        long = _texts(decoder, prompts, Sampling(max_new_tokens=14))
        # A token that some texts reach after a few others becomes the end of text.
        end = next(t[5] for t in long if t[5] not in t[:5])
        decoder.generation_config["eos_token_id"] = [end]
        cut = [t[: t.index(end) + 1] if end in t else t for t in long]
        assert any(2 < len(t) < 14 for t in cut)
        for most in (14, 9, 6, 3, 2, 1):
            how = Sampling(max_new_tokens=most)
            assistant = _mixed(decoder, prompts, long)
            found = _texts(decoder, prompts, how, assistant)
            assert found == [t[:most] for t in cut] == _texts(decoder, prompts, how)

    def test_texts_are_given_as_without(self, model_dir: ModelDir) -> None:
        decoder = _decoder(model_dir("fp32"))
        prompts = decoder.encoder.encode(PROMPTS[:6])
        how = Sampling(max_new_tokens=12, stop=("e",))
        seen: list[tuple[int, str]] = []
        found = decoder.generate(prompts, how, seen.extend, assistant=PromptLookup())
        assert found == decoder.generate(prompts, how)
        assert dict(seen) == dict(enumerate(found))

    def test_long_prompts_that_end_where_the_context_does(self, model_dir: ModelDir) -> None:
        decoder = _decoder(model_dir("int8-weight-only"))
        prompts = decoder.encoder.encode([" ".join(SENTENCES[i:] + SENTENCES * 5) for i in (0, 3)])
        how = Sampling(max_new_tokens=7)
        plain = _texts(decoder, prompts, how)
        cut = [p[-(decoder.context_length - 7) :] for p in prompts]
        draft = DraftModel(_decoder(model_dir("fp32")), adaptive=False)
        for assistant in (_mixed(decoder, cut, plain), draft):
            assert _texts(decoder, prompts, how, assistant) == plain
            assert assistant.counts["proposed"] > 0

    def test_a_repetition_penalty(self, model_dir: ModelDir) -> None:
        decoder = _decoder(model_dir("fp32"))
        prompts = decoder.encoder.encode(PROMPTS[:8])
        how = Sampling(max_new_tokens=14, repetition_penalty=1.5)
        plain = _texts(decoder, prompts, how)
        assistant = _mixed(decoder, prompts, plain)
        assert _texts(decoder, prompts, how, assistant) == plain
        assert assistant.counts["accepted"] > 0


class TestTheCache:
    @pytest.mark.parametrize("scheme", EXACT)
    def test_what_was_taken_back_leaves_nothing(self, model_dir: ModelDir, scheme: str) -> None:
        decoder = _decoder(model_dir(scheme))
        prompt = decoder.encoder.encode([PROMPTS[-1]])[0]
        stopping = Stopping(decoder, Sampling())
        text = list(range(30, 42))
        fresh = Reader.of_model(decoder, stopping, greedy=False)
        fresh.begin(prompt, 16)
        expected = [fresh.read([token])[0] for token in text]
        reader = Reader.of_model(decoder, stopping, greedy=False)
        reader.begin(prompt, 16)
        found: list[Any] = []
        for start, good, bad in ((0, 3, 2), (3, 1, 4), (4, 2, 0), (6, 5, 3), (11, 1, 1)):
            own = text[start : start + good]
            found += list(reader.read([*own, *range(200, 200 + bad)])[:good])
            reader.take_back(bad)
        np.testing.assert_array_equal(np.array(found), np.array(expected))
        last = [each.read([99])[0] for each in (fresh, reader)]
        np.testing.assert_array_equal(*last)
        # A step of one token reads two, the second of which is taken back by the next one.
        for spec, *values in zip(
            decoder.checking[1].cache, fresh._cache, reader._cache, strict=True
        ):
            one, other = (
                np.take(array_of(v), range(fresh._valid), axis=spec.length_axis) for v in values
            )
            np.testing.assert_array_equal(one, other)

    @pytest.mark.parametrize("scheme", EXACT)
    def test_a_pass_computes_what_generating_does(self, model_dir: ModelDir, scheme: str) -> None:
        decoder = _decoder(model_dir(scheme))
        prompt = decoder.encoder.encode([PROMPTS[-1]])[0]
        stepper = decoder.stepper(16)
        stepper.prefill([prompt, prompt], 16)
        text = list(range(30, 38))
        expected = [stepper.step([token, token])[0] for token in text]
        reader = Reader.of_model(decoder, Stopping(decoder, Sampling()), greedy=False)
        reader.begin(prompt, 16)
        found = [*reader.read(text[:3]), *reader.read(text[3:4]), *reader.read(text[4:])]
        np.testing.assert_array_equal(np.array(found), np.array(expected))


class TestSampledTexts:
    def test_seeds_repeat(self, model_dir: ModelDir, draft_dir: Path) -> None:
        decoder = _decoder(model_dir("fp32"))
        prompts = decoder.encoder.encode(PROMPTS[:4]) * 2
        assistants: list[Callable[[], Assistant]] = [
            lambda: DraftModel(_decoder(draft_dir)),
            lambda: PromptLookup(shortest=1),
        ]
        for make in assistants:
            found = [
                _texts(decoder, prompts, Sampling(12, temperature=1.0, top_k=0, seed=seed), make())
                for seed in (3, 3, 4)
            ]
            assert found[0] == found[1] != found[2]
            assert found[0][:4] != found[0][4:], "a repeated prompt draws anew"

    def test_a_narrow_nucleus_is_greedy(self, model_dir: ModelDir, draft_dir: Path) -> None:
        decoder = _decoder(model_dir("fp32"))
        prompts = decoder.encoder.encode(PROMPTS[:6])
        plain = _texts(decoder, prompts, Sampling(10))
        for how in (
            Sampling(10, temperature=1.0, top_k=1),
            Sampling(10, temperature=0.7, top_p=1e-6),
        ):
            assert _texts(decoder, prompts, how, DraftModel(_decoder(draft_dir))) == plain


class TestPromptLookup:
    def test_what_followed_the_latest_of_the_longest_matches(self) -> None:
        lookup = PromptLookup(longest=3, shortest=2)

        def found(text: list[int], most: int = 3) -> list[int]:
            return lookup.propose(text, most, None).tokens  # type: ignore[arg-type]

        assert found([1, 2, 3, 4, 5, 1, 2, 3]) == [4, 5, 1]
        assert found([9, 2, 3, 7, 8, 2, 3, 6, 9, 2, 3]) == [7, 8, 2], "three match, not only two"
        assert found([5, 2, 3, 7, 8, 2, 3, 6, 9, 2, 3]) == [6, 9, 2], "the latest"
        assert found([4, 4, 4, 4], most=2) == [4]
        assert found([1, 2, 3]) == found([1]) == []


class TestRefusals:
    def test_a_draft_of_another_vocabulary(
        self, model_dir: ModelDir, made: Made, tmp_path: Path
    ) -> None:
        other = made(make_tiny_llama(tmp_path / "other", vocab=300))
        decoder = _decoder(model_dir("fp32"))
        draft = DraftModel(_decoder(other))
        with pytest.raises(UnsupportedModelError, match=r"another vocabulary.*\d+ tokens differ"):
            decoder.generate([[1, 2]], Sampling(4), assistant=draft)

    def test_numbers_that_make_no_sense(self) -> None:
        with pytest.raises(InputError, match="0 proposed tokens"):
            PromptLookup(tokens=0)
        with pytest.raises(InputError, match="matches of 3 to 2"):
            PromptLookup(longest=2, shortest=3)

    def test_a_gpu(self, model_dir: ModelDir) -> None:
        decoder = _decoder(model_dir("fp32"))
        decoder.for_gpu = True
        with pytest.raises(UnsupportedModelError, match="--device cpu"):
            decoder.generate([[1, 2]], Sampling(4), assistant=PromptLookup())


class TestHowManyAreProposed:
    def test_fewer_where_few_are_kept_and_none_where_that_does_not_pay(
        self, model_dir: ModelDir
    ) -> None:
        decoder = _decoder(model_dir("fp32"))
        prompts = decoder.encoder.encode(PROMPTS[:6])
        how = Sampling(max_new_tokens=40)
        plain = _texts(decoder, prompts, how)
        right, wrong = (_mixed(decoder, prompts, plain) for _ in range(2))
        right._mistakes, wrong._mistakes = 0.0, 1.0
        for assistant in (right, wrong):
            assistant.adaptive, assistant.cost = True, 0.2
            assert _texts(decoder, prompts, how, assistant) == plain
        assert right.counts["proposed"] > 2 * wrong.counts["proposed"]
        assert wrong.counts["proposed"] > 0
