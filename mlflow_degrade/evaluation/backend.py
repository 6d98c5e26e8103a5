"""The scoring engine as an lm-eval model: ``--model mlflow-degrade-onnx``."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ..core.errors import InputError
from ..engine.conversation import choose_template, render
from ..engine.decoder import OnnxDecoder, Score
from ..engine.encoder import OnnxEncoder
from ..engine.generation import Generated, Sampling
from ..engine.tokenization import TextEncoder
from .known_texts import KnownTexts
from .probes import (
    SHORTEST_PROMPT,
    BatchInvariance,
    PathEquivalence,
    ScoringPath,
    choose_path,
    probe_batch_invariance,
    probe_path_equivalence,
    spread,
)

NAME = "mlflow-degrade-onnx"
"""Name of this backend in lm-eval's registry."""

_MAX_NEW_TOKENS = 256  # lm-eval's default for tasks that do not say
_SAMPLING: dict[str, Callable[[Any], Any]] = {
    "top_k": int,
    "top_p": float,
    "repetition_penalty": float,
}
_HANDLED = {*_SAMPLING, "temperature", "until", "max_gen_toks", "do_sample", "seed"}
_log = logging.getLogger(__name__)

Advance = Callable[[int], None]


class EngineLM(LM):  # type: ignore[misc]
    """A model of the engine behind lm-eval's interface."""

    metrics: frozenset[str] | None = None
    """Which of a task's metrics say something about this model; None for all of them."""

    def __init__(
        self,
        engine: OnnxDecoder | OnnxEncoder,
        path: ScoringPath | Literal["auto"],
        advance: Advance | None,
    ) -> None:
        super().__init__()
        self._engine = engine
        self._advance = advance or (lambda _count: None)
        self._probing = path == "auto"
        self.plans: list[dict[str, Any]] = []
        if path != "auto":
            self.take(path)

    def take(self, path: ScoringPath) -> None:
        """Score by this path from now on."""
        self._engine.unpadded = path == "one-by-one"

    def close(self) -> None:
        """Free the session's memory."""
        self._engine.close()

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Tell somebody of each answer, unless the engine keeps them itself."""
        # A second start would ask for the rest alone then, in other batches.
        if not self._engine.keeps_answers:
            super().set_cache_hook(cache_hook)

    def replayed(self) -> float:
        """Share of what was asked since this was last called that was known before."""
        return self._engine.replayed()

    def discard(self) -> None:
        """Forget what the engine keeps for another start."""
        self._engine.discard()

    def _keep_plan(self) -> None:
        """Record what the latest call ran."""
        if self._engine.last_plan is not None:
            self.plans.append(self._engine.last_plan.summary(halved=self._engine.halved))

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm-eval's cache of built prompts."""
        return str(self.tokenizer.name_or_path).replace("/", "__")


class TextLM(TemplateLM):  # type: ignore[misc]
    """What reads texts by a tokenizer of its own, whoever computes their likelihoods."""

    # Tokenization, truncation, special tokens, stop sequences and default lengths follow lm-eval's
    # Hugging Face backend. Results go to lm-eval's cache as they come, so that an evaluation that
    # was killed continues where it stopped.

    encoder: TextEncoder
    folder: Path
    _template: str | None = None
    _told = False

    def _score(
        self,
        pairs: Sequence[tuple[list[int], list[int]]],
        keep: Callable[[int, Score], None],
    ) -> list[tuple[float, bool]]:
        """Scores of (context, continuation), each handed to `keep` with its place."""
        raise NotImplementedError

    def _keep(self, kind: str, request: tuple[Any, ...], result: Any) -> None:
        self.cache_hook.add_partial(kind, request, result)

    @property
    def max_length(self) -> int:
        """The model's context length in tokens."""
        raise NotImplementedError

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm-eval's cache of built prompts."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        return self.encoder.encode(texts)

    # -- what lm-eval asks about the model ------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """Id of the end-of-text token."""
        return self.encoder.end_id

    @property
    def prefix_token_id(self) -> int:
        """Id of the token that stands for an empty context."""
        return self.encoder.prefix_id

    @property
    def max_gen_toks(self) -> int:
        """New tokens of tasks that do not say how many."""
        return _MAX_NEW_TOKENS

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids of one text."""
        return self.encoder.encode([string], add_special_tokens=add_special_tokens)[0]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Use a template of the tokenizer from now on: a named one, or the default."""
        # Lm-eval's Hugging Face backend logs a named template and renders the default one; here
        # the named one is rendered. Errors are those of
        # `mlflow_degrade.engine.conversation.choose_template`.
        self._template = None
        if chat_template:
            self._template = choose_template(self.tokenizer, chat_template, self.folder)
        return self._template

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt text of a conversation, by the tokenizer's chat template."""
        template = self._template or choose_template(self.tokenizer, True, self.folder)

        def prompt(messages: list[dict[str, str]]) -> str:
            folder = self.folder
            return render(self.tokenizer, messages, template, folder, reply=add_generation_prompt)

        try:
            return prompt(chat_history)
        except InputError as error:
            # Some templates know no system role; lm-eval drops it then, and so do we.
            rest = [message for message in chat_history if message["role"] != "system"]
            if len(rest) == len(chat_history):
                raise
            text = prompt(rest)
            if not self._told:
                _log.warning("%s Asked without its system message, as lm-eval does.", error)
            self._told = True
            return text

    # -- requests -------------------------------------------------------------------------

    def loglikelihood(
        self,
        requests: list[Instance],
        disable_tqdm: bool = False,  # noqa: ARG002 - part of lm-eval's interface
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each (context, continuation), and whether greedy decoding finds it."""
        pairs = [request.args for request in requests]
        encoded = self.encoder.encode_pairs(pairs)
        return self._score(encoded, lambda i, s: self._keep("loglikelihood", pairs[i], tuple(s)))

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """The same for requests that are token ids already."""

        def keep(index: int, score: Score) -> None:
            if requests[index][0] is not None:
                self._keep("loglikelihood", requests[index][0], tuple(score))

        return self._score([(context, rest) for _, context, rest in requests], keep)

    def loglikelihood_rolling(
        self,
        requests: list[Instance],
        disable_tqdm: bool = False,  # noqa: ARG002 - part of lm-eval's interface
    ) -> list[float]:
        """Log-likelihood of whole texts, in windows of the context length where they are longer."""
        texts = [request.args[0] for request in requests]
        windows: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for index, tokens in enumerate(self.encoder.encode(texts)):
            parts = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
            disjoint = [make_disjoint_window(part) for part in parts]
            windows += disjoint
            owners += [index] * len(disjoint)
        totals = [0.0] * len(texts)
        missing = Counter(owners)

        def keep(window: int, score: Score) -> None:
            owner = owners[window]
            totals[owner] += score.logprob
            missing[owner] -= 1
            if missing[owner] == 0:
                self._keep("loglikelihood_rolling", (texts[owner],), totals[owner])

        self._score(windows, keep)
        return totals


@register_model(NAME)
class OnnxLM(EngineLM, TextLM):
    """Decoder in ONNX Runtime behind lm-eval's interface."""

    def __init__(
        self,
        pretrained: str | OnnxDecoder,
        device: str = "auto",
        batch_size: int | str = "auto",
        path: ScoringPath | Literal["auto"] = "auto",
        max_batch_size: int | None = None,  # noqa: ARG002 - part of lm-eval's interface
        advance: Advance | None = None,
    ) -> None:
        self.decoder = (
            pretrained
            if isinstance(pretrained, OnnxDecoder)
            else OnnxDecoder(pretrained, device=device, batch_size=batch_size)
        )
        super().__init__(self.decoder, path, advance)
        self.encoder, self.folder = self.decoder.encoder, self.decoder.folder
        self.tokenizer = self.encoder.tokenizer
        self.probes: dict[str, BatchInvariance] = {}
        self.equivalence: PathEquivalence | None = None
        self.sampling_seed: int | None = None  # In place of what tasks say.
        self.known: KnownTexts | None = None  # Tried before anything is written.

    def take(self, path: ScoringPath) -> None:
        """Score by this path from now on."""
        super().take(path)
        self.decoder.reuse_prefixes = path == "shared-prefix"

    def probe(
        self, prompts: Sequence[Sequence[int]], *, generation: bool = False
    ) -> BatchInvariance:
        """Whether this model's scores depend on the batch."""
        return probe_batch_invariance(self.decoder, prompts, generation=generation)

    @property
    def max_length(self) -> int:
        """The model's context length in tokens."""
        return self.decoder.context_length

    def generate_until(
        self,
        requests: list[Instance],
        disable_tqdm: bool = False,  # noqa: ARG002 - part of lm-eval's interface
    ) -> list[str]:
        """Continue each context until a stop sequence, greedily or sampled."""
        texts = [""] * len(requests)
        for sampling, members in self._by_sampling(requests).items():
            some = [requests[i] for i in members]
            for index, text in zip(members, self._continue(some, sampling), strict=True):
                texts[index] = text
        return texts

    def _continue(self, requests: Sequence[Instance], sampling: Sampling) -> list[str]:
        """Continue contexts that are decoded alike; known texts are read where that is the same."""
        prompts = self.decoder.encoder.encode([request.args[0] for request in requests])
        self._settle("generation", prompts)
        texts: dict[int, str] = {}

        def keep(finished: list[Generated]) -> None:
            for made in finished:
                texts[made.prompt] = made.text
                self._keep("generate_until", requests[made.prompt].args, made.text)
            self._advance(len(finished))

        # Sampled texts have streams of their own; what depends on its batch is not read as written.
        known = self.known if sampling.greedy and not self.decoder.unpadded else None
        if known is not None:
            for finished in known.confirmed(self.decoder, prompts, sampling):
                keep(finished)
        left = [place for place in range(len(prompts)) if place not in texts]

        for finished in self.decoder.generated([prompts[place] for place in left], sampling):
            named = [made._replace(prompt=left[made.prompt]) for made in finished]
            keep(named)
            if known is not None:
                for made in named:
                    known.add(prompts[made.prompt], sampling, made.tokens)
        return [texts[place] for place in range(len(prompts))]

    # -- helpers --------------------------------------------------------------------------

    def _score(
        self,
        pairs: Sequence[tuple[list[int], list[int]]],
        keep: Callable[[int, Score], None],
    ) -> list[tuple[float, bool]]:
        def finished(scores: list[tuple[int, Score]]) -> None:
            for index, score in scores:
                keep(index, score)
            self._advance(len(scores))

        self._settle("scoring", [[*context, *rest] for context, rest in pairs])
        scores = self.decoder.score(pairs, finished)
        self._keep_plan()
        return [(score.logprob, score.is_greedy) for score in scores]

    def _settle(self, use: str, prompts: Sequence[list[int]]) -> None:
        """Take the fastest path; leave batches for good when answers depend on them."""
        usable = [prompt for prompt in prompts if len(prompt) > 1]
        if not self._probing or use in self.probes or self.decoder.unpadded or not usable:
            return
        some = spread(usable)
        probe = self.probe(some, generation=use == "generation")
        self.probes[use] = probe
        long = [prompt for prompt in some if len(prompt) >= SHORTEST_PROMPT]
        if use == "scoring" and probe.invariant and long and self.decoder.can_reuse_prefixes:
            self.equivalence = probe_path_equivalence(self.decoder, long)
        known = [] if self.equivalence is None else [self.equivalence]
        self.take(choose_path(probe, equivalences=known))

    def _by_sampling(self, requests: Sequence[Instance]) -> dict[Sampling, list[int]]:
        """Indices of the requests that are decoded alike."""
        groups: dict[Sampling, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(self.sampling(request.args[1]), []).append(index)
        return groups

    def sampling(self, stated: dict[str, Any]) -> Sampling:
        """How texts are generated, by a task's generation arguments."""
        options = dict(normalize_gen_kwargs(stated, self.max_gen_toks))
        unknown = sorted(set(options) - _HANDLED)
        if unknown:
            raise InputError(
                f"the task asks for generation with {unknown}, which is not implemented; known are "
                f"{sorted(_HANDLED)}: change its generation_kwargs."
            )
        end = self.tokenizer.decode([self.eot_token_id])
        stop = dict.fromkeys([*options["until"], end])
        # Where the task says nothing, the model's own settings hold, as in transformers.
        usual = self.decoder.generation_config
        chosen = {
            name: kind(value)
            for name, kind in _SAMPLING.items()
            if (value := options.get(name, usual.get(name))) is not None
        }
        chosen["temperature"] = float(options["temperature"]) if options["do_sample"] else 0.0
        return Sampling(
            max_new_tokens=options["max_gen_toks"],
            stop=tuple(s for s in stop if s),
            seed=int(options.get("seed", 0)) if self.sampling_seed is None else self.sampling_seed,
            **chosen,
        )
