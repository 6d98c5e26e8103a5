"""The scoring engine: log-likelihoods of continuations from a decoder in ONNX Runtime."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.errors import (
    EngineError,
    InputError,
    ModelError,
    NonFiniteLogitsError,
    UnsupportedModelError,
)
from .engine_graph import DerivedGraph, Form, build_engine_graph
from .fixed_stepping import FixedModel, FixedStepper, Stepper, open_fixed
from .forward_pass import Answers, Cache, run_plan, run_rows
from .generation import Generated, Running, Sampling, generate, generated, run_batches
from .lengths import exact_length, require_exact, stated_length
from .providers import CUDA, memory_name, on_gpu, resolve_device
from .query_by_query import query_by_query
from .schedule import UNPADDED, Limits, Plan, Row, Tokens, batch_cost, make_plan, share
from .session import DecoderInputs, decoder_inputs, open_derived, read_json, run_error
from .session_calls import Calls, CapturedCalls, Halving
from .tokenization import TextEncoder

if TYPE_CHECKING:
    from .assisted import Assistant

_log = logging.getLogger(__name__)

# Measured on x86 with 2 cores (SmolLM2-135M, fp32 and MatMulNBits): from 256 to 2,048 positions per
# batch the throughput of short rows is flat within noise, larger batches only cost memory, and a
# batch takes as long as 24 positions even before its first one.
_ON_CPU = 256, 24
# A GPU wants enough work per launch; 16k positions of a 1B model stay below 2 GB of activations.
_ON_GPU = 16_384, 1_024
# Logits and their log-softmax are two float32 [outputs, vocabulary] buffers.
_OUTPUT_BYTES = 256 << 20


class Score(NamedTuple):
    """Log-likelihood of one continuation.

    Attributes
    ----------
    logprob : float
        Sum of the natural log-probabilities of its tokens.
    is_greedy : bool
        Whether each of its tokens is the most likely one.
    """

    logprob: float
    is_greedy: bool


class TokenScore(NamedTuple):
    """Log-probability of one token of a text.

    Attributes
    ----------
    logprob : float
        Natural logarithm of its probability given the tokens before it.
    top : tuple of (int, float)
        The most likely tokens in its place and their log-probabilities, best first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


class EngineModel:
    """What decoders and encoders have in common: a directory, a device, and how batches are cut."""

    def __init__(
        self, folder: str | Path, device: str, batch_size: int | str, threads: int | None
    ) -> None:
        self.folder = Path(folder)
        self.providers = resolve_device(device)
        self.config = read_json(self.folder, "config.json", needed=True)
        self.unpadded = False
        self.last_plan: Plan | None = None
        self.batch_size = None if batch_size == "auto" else positive(batch_size)
        self._threads = threads
        self._halving = Halving(self.folder)

    @property
    def halved(self) -> int:
        """How many batches of the latest call were halved because memory did not suffice."""
        return self._halving.count

    # What runs batches elsewhere keeps their answers there, for another start.

    keeps_answers = False

    def replayed(self) -> float:
        """Share of what was asked since this was last called that was known before."""
        return 0.0

    def discard(self) -> None:
        """Forget what is kept for another start: the evaluation is kept as a whole."""

    def _limits(
        self, cpu: tuple[int, int], gpu: tuple[int, int], longest: int, **options: int
    ) -> Limits:
        """Limits of a batch, from positions and overhead on each kind of device."""
        if self.unpadded:
            return UNPADDED
        tokens, overhead = gpu if on_gpu(self.providers) else cpu
        if self.batch_size is not None:
            tokens = self.batch_size * longest
        return Limits(tokens=tokens, rows=self.batch_size, overhead=overhead, **options)


class OnnxDecoder(EngineModel):
    """A causal language model in ONNX Runtime, for scoring and generation.

    Parameters
    ----------
    folder : path
        A model directory: ``model.onnx``, ``config.json`` and tokenizer files.
    device : {"auto", "cpu", "cuda", "tensorrt"}
        Where to run; nothing silently runs elsewhere.
    batch_size : int or "auto"
        Most sequences per batch; ``"auto"`` goes by a token budget.
    threads : int, optional
        Threads per operator; all available cores by default.

    Attributes
    ----------
    encoder : TextEncoder
        The tokenizer.
    config, generation_config : dict
        Contents of ``config.json`` and ``generation_config.json``.
    context_length : int
        Most tokens a sequence may have.
    batch_size : int or None
        Most sequences per batch, if the caller set it.
    unpadded : bool
        Whether sequences run one at a time and unpadded. Off by default; set it for models whose
        scores depend on their batch (see `mlflow_degrade.evaluation.probes`).
    reuse_prefixes : bool
        Whether beginnings that sequences share are computed once (see
        `mlflow_degrade.engine.schedule`). Off by default; for models whose scores this leaves
        alone (see `mlflow_degrade.evaluation.probes`).
    for_gpu : bool
        Whether the model is run by graphs written for a GPU, where it allows them: no mask, caches
        that stay on the device and have fixed places while generating (see
        `mlflow_degrade.engine.engine_graph`); on by default on CUDA. To be set before any call.
    cuda_graphs : bool
        Whether calls are captured as CUDA graphs, where the model allows it; on by
        default on CUDA. To be set before the first call.
    last_plan : Plan or None
        What the latest call of `score` ran.

    Raises
    ------
    ModelError
        Files are missing or unreadable.
    UnsupportedModelError
        Not a decoder the engine knows.
    ProviderUnavailableError
        The device is not there.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        device: str = "auto",
        batch_size: int | str = "auto",
        threads: int | None = None,
    ) -> None:
        super().__init__(folder, device, batch_size, threads)
        self.generation_config = read_json(self.folder, "generation_config.json", needed=False)
        self.encoder = TextEncoder(self.folder)
        self.context_length = context_length(self.config, self.encoder.tokenizer)
        self.reuse_prefixes = False
        self.for_gpu = self.cuda_graphs = self.providers[0] == CUDA

    # -- session --------------------------------------------------------------------------

    @property
    def session(self) -> Any:
        """The onnxruntime session, opened when it is first needed."""
        return self.calls.session

    @property
    def calls(self) -> Calls:
        """Calls of the session: as CUDA graphs if the device and the model allow it."""
        return self._scoring[1]

    @cached_property
    def _scoring(self) -> tuple[DerivedGraph, Calls]:
        # By the best form of its graph that onnxruntime runs here.
        self._forget("_fixed", "checking")  # weights are held once
        file = self.folder / "model.onnx"
        forms: tuple[Form, ...] = ("unmasked", "exported") if self.for_gpu else ("exported",)
        for form in forms:
            try:
                graph = build_engine_graph(file, form=form)
            except UnsupportedModelError as error:
                if form == "exported":
                    raise
                _log.info("%s: attention keeps its mask: %s", self.folder, error)
                continue
            for captured in (True, False) if self.cuda_graphs else (False,):
                if not graph.distinct and (form == "exported" or captured):
                    continue
                try:
                    return graph, self._tried(graph, captured)
                except (ModelError, EngineError) as error:
                    what = "calls are not captured" if captured else f"not run {form}"
                    _log.info("%s: %s: %s", self.folder, what, error)
        # No position is shared: the graph was changed by rules that its architecture does not
        # follow.
        graph = build_engine_graph(file, distinct=False)
        session = open_derived(graph, self.providers, threads=self._threads)
        return graph, Calls(session, self.device_type)

    def _tried(self, graph: DerivedGraph, capture: bool) -> Calls:
        """Open a session and run two short sequences that begin alike, also on top of a cache."""
        session = open_derived(graph, self.providers, threads=self._threads, capture=capture)
        calls = (CapturedCalls if capture else Calls)(session, self.device_type)
        inputs = decoder_inputs(session, graph.folder)
        rows = [Row((0, 0), {1: [0]}), Row((0, 1, 0), {2: [0]})]
        run = partial(run_rows, calls, inputs, multiple=1, share=graph.distinct)
        try:
            run(rows, 3)
            if inputs.past_rows and graph.distinct:
                _, past = run(rows[:1], 2, keep_cache=True)
                run(rows, 3, past=past)
        except Exception as error:
            raise run_error(error, graph.folder) from error
        return calls

    def stepper(self, new_tokens: int, *, greedy: bool = False) -> Stepper | FixedStepper:
        """What reads a batch of prompts and then advances by up to `new_tokens` tokens."""
        if self.for_gpu and self._fixed is not None:
            return FixedStepper(self._fixed, new_tokens, greedy=greedy)
        parts = self.session, self.inputs, self.device_type, self.folder
        return Stepper(*parts, greedy=greedy, prefill_only=not new_tokens)

    @cached_property
    def _fixed(self) -> FixedModel | None:
        """The model with caches in fixed places; None where it does not allow that."""
        self._forget("_scoring", "checking")  # weights are held once
        try:
            return open_fixed(
                self.folder, self.providers, threads=self._threads, capture=self.cuda_graphs
            )
        except (ModelError, EngineError) as error:
            _log.info("%s: caches have no fixed places: %s", self.folder, error)
        # Without them texts are generated by the session that scores, which then needs its mask.
        self.for_gpu = False
        self.__dict__.pop("inputs", None)
        return None

    @cached_property
    def checking(self) -> tuple[Any, DecoderInputs]:
        """A session that reads several tokens as generating them does, and what it takes."""
        distinct = self.inputs.distinct  # where that was found to run
        self._forget("_scoring", "_fixed")  # weights are held once
        file = self.folder / "model.onnx"
        try:
            graph = query_by_query(file, distinct=distinct)
            session = open_derived(graph, self.providers, threads=self._threads)
        except ModelError as error:
            # The CPU lacks kernels for some of it in bfloat16.
            _log.info("%s: several tokens are read at once: %s", self.folder, error)
            graph = build_engine_graph(file, distinct=distinct)
            session = open_derived(graph, self.providers, threads=self._threads)
        return session, decoder_inputs(session, self.folder)

    @cached_property
    def inputs(self) -> DecoderInputs:
        """What the model takes."""
        return decoder_inputs(self.session, self.folder)

    @property
    def gather(self) -> str:
        """Where rows are gathered, e.g. ``"before MatMulNBits"``."""
        return self._scoring[0].gather

    @property
    def device_type(self) -> str:
        """Onnxruntime's name of the device tensors stay on: ``"cpu"`` or ``"cuda"``."""
        return memory_name(self.providers)

    def close(self) -> None:
        """Free the session's memory; the next call opens it again."""
        self._forget("_scoring", "_fixed", "checking")

    def _forget(self, *sessions: str) -> None:
        for name in sessions:
            self.__dict__.pop(name, None)

    @property
    def limits(self) -> Limits:
        """Limits of a batch on this device."""
        vocabulary = int(self.config.get("vocab_size") or len(self.encoder.tokenizer))
        outputs = max(64, _OUTPUT_BYTES // (8 * vocabulary))
        return self._limits(_ON_CPU, _ON_GPU, self.context_length, outputs=outputs)

    # -- scoring --------------------------------------------------------------------------

    @property
    def can_reuse_prefixes(self) -> bool:
        """Whether the model's graph can compute distinct positions of a batch once."""
        return self.inputs.distinct

    def plan(
        self, requests: Sequence[tuple[Tokens, Tokens]], *, always_continue: bool = False
    ) -> Plan:
        """What `score` will run for these requests.

        Parameters
        ----------
        requests : sequence of (tokens, tokens)
            As for `score`.
        always_continue : bool
            With `reuse_prefixes`: whether shared beginnings are continued from their caches even
            where that does not pay, and shared even where that does not.

        Raises
        ------
        InputError
            A request without tokens, or one that the exported graph would read otherwise than the
            model (see `mlflow_degrade.engine.lengths.exact_length`).
        """
        longest = max((len(a) + len(b) - 1 for a, b in requests), default=0)
        require_exact(longest, self.config, "a request")
        plan = make_plan(
            requests,
            context_length=self.context_length,
            limits=self.limits,
            share_prefixes=not self.unpadded,
        )
        if self.unpadded or not self.reuse_prefixes or not self.can_reuse_prefixes:
            return plan
        sharing = share(
            plan.rows, plan.limits, token_bytes=self.token_bytes, always=always_continue
        )
        pays = always_continue or sharing.cost < batch_cost(plan.batches)
        return replace(plan, sharing=sharing) if pays else plan

    @property
    def token_bytes(self) -> int:
        """Bytes of cache per token; 0 where a cache cannot be continued.

        That needs an export with a cache and explicit positions. On a GPU it needs a graph whose
        caches stay there: through the host, they would cost more than they save.
        """
        stays = self.inputs.past_rows or not on_gpu(self.providers)
        if not self.inputs.position_ids or not stays:
            return 0
        return sum(cache.token_bytes for cache in self.inputs.cache)

    def score(
        self,
        requests: Sequence[tuple[Tokens, Tokens]],
        on_scores: Callable[[list[tuple[int, Score]]], None] | None = None,
        *,
        plan: Plan | None = None,
    ) -> list[Score]:
        """Log-likelihood of each continuation given its context.

        Parameters
        ----------
        requests : sequence of (tokens, tokens)
            Context and continuation as token ids, both non-empty. What exceeds the context length
            is cut on the left and counted in `last_plan`.
        on_scores : callable, optional
            Called after each batch with the (index of request, score) pairs it finished.
        plan : Plan, optional
            What `plan` made of the same requests; by default it is made here.

        Returns
        -------
        list of Score
            In the order of the requests.

        Raises
        ------
        NonFiniteLogitsError
            The model produced NaN or infinity.
        EngineError
            Onnxruntime failed, or memory ran out for a single sequence.
        InputError
            A request without tokens, or with a continuation longer than the context length, or one
            that is too long for what was exported (see `plan`).

        Notes
        -----
        Rows run longest first in batches of similar length, right-padded. Padding follows the real
        tokens of a causal model and so cannot reach them. Only the hidden states in front of the
        wanted tokens go through the LM head, and the softmax is float32.
        """
        scores: list[Score | None] = [None] * len(requests)
        plan = plan or self.plan(requests)
        for answered in self._answers(plan):
            finished = []
            for index, answers in answered:
                row, first = plan.places[index]
                score = _score(answers, first, requests[index][1])
                if not math.isfinite(score.logprob):
                    raise self._not_finite(plan.rows[row], answers)
                finished.append((index, score))
            for index, score in finished:
                scores[index] = score
            if on_scores is not None:
                on_scores(finished)
        return [score for score in scores if score is not None]

    def token_scores(
        self, texts: Sequence[Tokens], *, top: int = 0, since: Sequence[int] | None = None
    ) -> list[list[TokenScore]]:
        """Log-probability of each token of each text but its first, given those before it.

        Parameters
        ----------
        texts : sequence of tokens
            Token ids, at least one each; at most one more than the context length.
        top : int
            How many of the most likely tokens are wanted at each place.
        since : sequence of int, optional
            Of each text the first token that is wanted, 1 by default. What texts begin with alike
            before it is read once.

        Returns
        -------
        list of list of TokenScore
            Of each text one less than it has tokens, or those from `since` on.

        Raises
        ------
        NonFiniteLogitsError, EngineError, InputError
            As for `score`, which computes the same numbers.
        """
        first_of = [1] * len(texts) if since is None else since
        long = [index for index, text in enumerate(texts) if len(text) > first_of[index]]
        found: list[list[TokenScore]] = [[] for _ in texts]
        if not long:
            return found
        plan = self.plan([(texts[i][: first_of[i]], texts[i][first_of[i] :]) for i in long])
        for answered in self._answers(plan, top):
            for index, answers in answered:
                row, first = plan.places[index]
                scores = found[long[index]]
                own = texts[long[index]][first_of[long[index]] :]
                for place, token in enumerate(own, start=first):
                    scores.append(TokenScore(answers.at(place, token)[0], answers.top(place)))
                if not all(math.isfinite(score.logprob) for score in scores):
                    raise self._not_finite(plan.rows[row], answers)
        return found

    def _answers(self, plan: Plan, top: int = 0) -> Iterator[list[tuple[int, Answers]]]:
        """Indices of requests, with what the model said about their rows, batch by batch."""
        self.last_plan = plan
        self._halving.count = 0
        asking: list[list[int]] = [[] for _ in plan.rows]
        for index, (row, _) in enumerate(plan.places):
            asking[row].append(index)
        for answered in self.run(plan, top=top):
            yield [(index, answers) for row, answers in answered for index in asking[row]]

    def run(
        self, plan: Plan, prefixes: dict[tuple[int, ...], Cache] | None = None, *, top: int = 0
    ) -> Iterator[list[tuple[int, Answers]]]:
        """Rows of a plan with what the model said about them, batch by batch."""
        # `prefixes` keeps the cache of the latest beginning for another plan that continues it.
        continues = plan.sharing is not None and self.token_bytes > 0
        parts = plan, self.calls, self.inputs, self._halving
        return run_plan(*parts, continues=continues, prefixes=prefixes, top=top)

    def run_batches(
        self, batches: Iterable[Sequence[Running]], sampling: Sampling
    ) -> Iterator[list[Generated]]:
        """Continue batches of prompts one after the other."""
        return run_batches(self, batches, sampling)

    def generate(
        self,
        prompts: Sequence[Tokens],
        sampling: Sampling | None = None,
        on_texts: Callable[[list[tuple[int, str]]], None] | None = None,
        *,
        assistant: Assistant | None = None,
    ) -> list[str]:
        """Continue each prompt; see `mlflow_degrade.engine.generation.generate`."""
        return generate(self, prompts, sampling or Sampling(), on_texts, assistant=assistant)

    def generated(self, prompts: Sequence[Tokens], sampling: Sampling) -> Iterator[list[Generated]]:
        """Continue each prompt, batch by batch, with the tokens; as `generate` does."""
        return generated(self, prompts, sampling)

    def _not_finite(self, row: Row, answers: Answers) -> NonFiniteLogitsError:
        position = answers.first_non_finite()
        text = self.encoder.decode(row.tokens[max(0, position - 12) : position + 1])
        return NonFiniteLogitsError(
            f"the model in {self.folder} gives a log-probability that is NaN or infinite after "
            f"token {position + 1} of {len(row.tokens)}, {text!r}: its weights or activations "
            "overflow (fp16 without a float32 softmax or norm often does); nothing of this model "
            "is scored."
        )


def _score(answers: Answers, first: int, continuation: Tokens) -> Score:
    found = [answers.at(first + i, token) for i, token in enumerate(continuation)]
    return Score(math.fsum(value for value, _ in found), all(best for _, best in found))


def positive(batch_size: int | str) -> int:
    """A stated batch size as a number."""
    try:
        size = int(batch_size)
    except ValueError:
        size = 0
    if size < 1:
        raise InputError(
            f"batch_size {batch_size!r} is neither 'auto' nor a whole number from 1: use 'auto'."
        )
    return size


def context_length(config: dict[str, Any], tokenizer: Any) -> int:
    """Most tokens a sequence may have: the model's own limit, else the tokenizer's, else 2,048."""
    # The order is lm-eval's, so that long prompts are cut at the same place. Where the exported
    # graph is the model for shorter texts only, that is the limit (see
    # `mlflow_degrade.engine.lengths`).
    if (longest := stated_length(config)) is not None:
        return min(longest, exact_length(config) or longest)
    stated = int(getattr(tokenizer, "model_max_length", 0) or 0)
    # Tokenizers without a limit state 1e30.
    return stated if 0 < stated < 1 << 30 else 2048
