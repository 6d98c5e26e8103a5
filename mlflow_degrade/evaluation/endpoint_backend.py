"""A server with OpenAI's completions as an lm-eval model: ``--model endpoint``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs

from ..core.cache import cache_root, digest_file, digest_json, digest_model
from ..core.errors import EngineError, InputError, ModelError, say_note
from ..core.progress import progress_bar
from ..engine.decoder import Score
from ..engine.lengths import stated_length
from ..engine.session import read_json
from ..engine.tokenization import TextEncoder
from .backend import TextLM
from .endpoint import AgainError, Endpoint, Protocol, RefusedError
from .endpoint_probes import (
    TOP,
    DisagreementError,
    Echo,
    Fidelity,
    NoLikelihoodsError,
    Reading,
    check_fidelity,
)
from .lm_eval_task import Journal
from .probes import TOLERANCE, BatchInvariance, spread

NAME = "endpoint"
"""Name of this backend in lm-eval's registry."""

_CONTEXT = 2048
_LONGEST_PROBE = 256
_FIDELITY_PROMPTS = 4
_NEW_TOKENS = 8
_OPTIONS = {"top_k": int, "top_p": float, "repetition_penalty": float}
_HANDLED = {*_OPTIONS, "temperature", "until", "max_gen_toks", "do_sample", "seed"}
_REMEDY = (
    "Start it so that it returns those of prompts (llama-cpp-python: --logits_all true; SGLang and "
    "llama-server give none of prompts in completions), or use tasks that generate."
)


def files_digest(files: str | Path) -> str:
    """Digest of the files in a directory, or of one file, whatever a manifest says of them."""
    path = Path(files).expanduser()
    if not path.exists():
        raise ModelError(
            f"files {files} does not exist: name the directory or the GGUF file that is served, as "
            "it lies on this machine."
        )
    return digest_model(path)


@register_model(NAME)
class EndpointLM(TextLM):
    """A server behind lm-eval's interface."""

    metrics: frozenset[str] | None = None

    def __init__(
        self,
        base_url: str = "",
        tokenizer: str = "",
        model: str | None = None,
        protocol: Protocol = "completions",
        concurrency: int = 8,
        files: str | None = None,
        engine: str | None = None,
        version: str | None = None,
        flags: str = "",
        bos: bool = False,
        max_length: int | None = None,
        timeout: float = 300.0,
        patience: float = 120.0,
        dependent: str = "alone",
        rerun: str = "",
        progress: bool = True,
        batch_size: int | str | None = None,
        device: str | None = None,  # noqa: ARG002 - part of lm-eval's interface
        max_batch_size: int | None = None,  # noqa: ARG002 - part of lm-eval's interface
    ) -> None:
        super().__init__()
        if not base_url:
            raise InputError(
                "--model endpoint needs an address: --model-args "
                "base_url=http://localhost:8000/v1,tokenizer=DIR."
            )
        if not tokenizer and files and Path(files).expanduser().is_dir():
            tokenizer = str(files)
        if not tokenizer:
            raise InputError(
                "--model endpoint needs the tokenizer of the model that is served: tokenizer=DIR, "
                "a directory with its tokenizer files."
            )
        self.folder = Path(tokenizer).expanduser()
        self.encoder = TextEncoder(self.folder)
        self.tokenizer = self.encoder.tokenizer
        self._weights = None if files is None else files_digest(files)
        self._flags, self._bos, self._rerun, self._progress = flags, bos, rerun, progress
        self._guarded = dependent != "kept"
        self.endpoint = Endpoint(
            str(base_url),
            model=None if model is None else str(model),
            protocol=protocol,
            engine=engine,
            version=None if version is None else str(version),
            concurrency=int(concurrency),
            timeout=float(timeout),
            patience=float(patience),
        )
        served = self.endpoint.identity.digest
        if self._weights and served and served != self._weights:
            raise ModelError(
                f"the server says that it serves {served}, and files {files} have digest "
                f"{self._weights}: name the files that are served, or serve these."
            )
        given = 64 if protocol == "mlflow" else 1
        self._batch = int(str(batch_size)) if str(batch_size).isdecimal() else given
        self._length = self._context(max_length)
        self._reading = Reading(self.encoder, self.endpoint.root)
        self._as_text: bool | None = None
        self._bare = False  # Whether the server puts the token for a beginning itself.
        self._journal: Journal | None = None
        self.fidelity: Fidelity | None = None
        self.probes: dict[str, BatchInvariance] = {}
        self.truncated = self.retokenized = self.resumed = 0

    # -- what it says of itself -----------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """Who answered and how it was asked, for the evidence."""
        identity = self.endpoint.identity
        served = identity.digest
        source = "files" if self._weights else "server" if served else "unknown"
        return {
            **identity.to_dict(),
            "flags": self._flags,
            "protocol": self.endpoint.protocol,
            "weights": {"digest": self._weights or served, "by": source},
        }

    def findings(self) -> dict[str, Any]:
        """What probes and the asking showed."""
        return {
            "prompts": None if self._as_text is None else "text" if self._as_text else "tokens",
            "fidelity": None if self.fidelity is None else self.fidelity.to_dict(),
            "probes": {use: probe.to_dict() for use, probe in self.probes.items()},
            "concurrency": self.endpoint.concurrency,
            "batch": self._batch,
            "requests": self.endpoint.requests,
            "retries": self.endpoint.retries,
            "resumed": self.resumed,
            "truncated": self.truncated,
            "retokenized": self.retokenized,
        }

    @property
    def max_length(self) -> int:
        """Most tokens of a text without its last, as lm-eval counts."""
        return self._length - 1

    def _context(self, given: int | None) -> int:
        config = read_json(self.folder, "config.json", needed=False)
        stated = given or self.endpoint.identity.context or stated_length(config)
        if stated is None:
            say_note(
                f"the server does not say how long its context is: texts are cut at {_CONTEXT} "
                "tokens; max_length=N sets it"
            )
        # One token is generated after a prompt, as engines refuse to generate none.
        return int(stated or _CONTEXT) - (self.endpoint.protocol != "mlflow")

    # -- requests -------------------------------------------------------------------------

    def loglikelihood(
        self,
        requests: list[Instance],
        disable_tqdm: bool = False,  # noqa: ARG002 - part of lm-eval's interface
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each (context, continuation), and whether greedy decoding finds it."""
        pairs = self.encoder.encode_pairs([request.args for request in requests])
        self._settle("scoring", [[*context, *rest] for context, rest in pairs])
        return self._resumed("loglikelihood", requests, super().loglikelihood)

    def loglikelihood_rolling(
        self,
        requests: list[Instance],
        disable_tqdm: bool = False,  # noqa: ARG002 - part of lm-eval's interface
    ) -> list[float]:
        """Log-likelihood of whole texts."""
        self._settle("scoring", self.encoder.encode([request.args[0] for request in requests]))
        return self._resumed("loglikelihood_rolling", requests, super().loglikelihood_rolling)

    def generate_until(
        self,
        requests: list[Instance],
        disable_tqdm: bool = False,  # noqa: ARG002 - part of lm-eval's interface
    ) -> list[str]:
        """Continue each context until a stop sequence, greedily or sampled."""
        self._settle("generation", self.encoder.encode([request.args[0] for request in requests]))
        return self._resumed("generate_until", requests, self._generate)

    def _resumed(
        self, kind: str, requests: list[Instance], ask: Callable[[list[Instance]], list[Any]]
    ) -> list[Any]:
        """Answers, of which those of an evaluation that was broken off are not asked again."""
        if self._journal is None:
            raise EngineError("nothing was asked yet: this is a mistake in mlflow-degrade.")
        answers = [self._journal.answer(kind, request.args) for request in requests]
        waiting = [place for place, answer in enumerate(answers) if answer is None]
        self.resumed += len(requests) - len(waiting)
        if waiting:
            asked = ask([requests[place] for place in waiting])
            for place, answer in zip(waiting, asked, strict=True):
                answers[place] = answer
        return answers

    def discard(self) -> None:
        """Forget the answers that were kept in case the evaluation is broken off."""
        if self._journal is not None:
            self._journal.__exit__(None, None, None)
            self._journal.path.unlink(missing_ok=True)
            self._journal = None

    def _score(
        self,
        pairs: Sequence[tuple[list[int], list[int]]],
        keep: Callable[[int, Score], None],
    ) -> list[tuple[float, bool]]:
        wholes = [self._whole(context, rest) for context, rest in pairs]
        scores: dict[int, Score] = {}

        def answered(place: int, echo: Echo) -> None:
            scores[place] = echo.score(len(pairs[place][1]), self.endpoint.root)
            keep(place, scores[place])

        with progress_bar(f"Asking {self.endpoint.identity.model}", self._progress) as bar:
            bar(len(wholes), 0)
            since = [len(w) - len(rest) for w, (_, rest) in zip(wholes, pairs, strict=True)]
            self._echoes(wholes, answered, since=since, advance=lambda count: bar(0, count))
        return [(scores[place].logprob, scores[place].is_greedy) for place in range(len(pairs))]

    def _whole(self, context: list[int], rest: list[int]) -> list[int]:
        """What is asked for one sample: at most as many tokens as the server reads."""
        tokens = self._begun([*context, *rest])
        if len(rest) >= self._length:
            raise InputError(
                f"a continuation has {len(rest)} tokens and the context of the model "
                f"{self._length}: leave the sample out, or serve the model with a longer context."
            )
        if len(tokens) > self._length:
            self.truncated += 1
            tokens = tokens[-self._length :]
        if not self._as_text:
            return tokens
        # A text that was cut, or put together of two, may be read in other tokens.
        sent = self._sent(tokens)
        begins = tokens[:1] if sent and tokens[:1] == [self.encoder.prefix_id] else []
        again = self.encoder.encode([str(sent)], add_special_tokens=False)[0]
        again = [*begins, *again] if begins and again[:1] != begins else again
        if again == tokens:
            return tokens
        if again[-len(rest) :] != rest:
            raise InputError(
                f"the continuation {self.tokenizer.decode(rest)!r} is read in other tokens when "
                f"{self.endpoint.root} is sent it as text, so it has no likelihood there: leave "
                "the sample out, or use a server that takes token ids (vLLM, SGLang)."
            )
        self.retokenized += 1
        return again

    def _begun(self, tokens: Sequence[int]) -> list[int]:
        """With the token for a beginning, where each text gets one."""
        begin = self.encoder.prefix_id
        return [begin, *tokens] if self._bos and tokens[:1] != [begin] else list(tokens)

    def _echoes(
        self,
        prompts: Sequence[Sequence[int]],
        answered: Callable[[int, Echo], None],
        *,
        top: int = 1,
        since: Sequence[int] | None = None,
        advance: Callable[[int], None] = lambda _count: None,
        concurrency: int | None = None,
        batch: int | None = None,
    ) -> None:
        size = batch or self._batch
        parts = [prompts[start : start + size] for start in range(0, len(prompts), size)]

        def read(part: int, choices: list[dict[str, Any]]) -> None:
            for offset, choice in enumerate(choices):
                place = part * size + offset
                answered(place, self._reading.echo(choice, prompts[place]))

        bodies = [self._scoring(part, top) for part in parts]
        if since is not None and self.endpoint.protocol == "mlflow":
            # Ours reads what comes before once, and computes nothing of it that nobody needs.
            for part, body in enumerate(bodies):
                body["logprobs_from"] = list(since[part * size : part * size + size])
        self.endpoint.ask(bodies, read, advance=advance, concurrency=concurrency)

    def _scoring(self, prompts: Sequence[Sequence[int]], top: int) -> dict[str, Any]:
        sent = [self._sent(prompt) for prompt in prompts]
        none = self.endpoint.protocol == "mlflow"
        return {
            "prompt": sent[0] if len(sent) == 1 else sent,
            "max_tokens": 0 if none else 1,
            "echo": True,
            "logprobs": top,
            "temperature": 0,
        }

    def _sent(self, tokens: Sequence[int]) -> list[int] | str:
        """A prompt as the server takes it."""
        if not self._as_text:
            return list(tokens)
        bare = self._bare and tokens[:1] == [self.encoder.prefix_id]
        text: str = self.tokenizer.decode(
            tokens[1:] if bare else tokens, clean_up_tokenization_spaces=False
        )
        return text

    # -- generation -----------------------------------------------------------------------

    def _generate(self, requests: list[Instance]) -> list[str]:
        bodies, stops = [], []
        seen: dict[str, int] = {}
        for request in requests:
            body, stop = self._generation(*request.args)
            # A repeated prompt draws anew.
            number = seen[request.args[0]] = seen.get(request.args[0], -1) + 1
            if body["temperature"]:
                body["seed"] += number
            bodies.append(body)
            stops.append(stop)
        texts = [""] * len(requests)

        def answered(place: int, choices: list[dict[str, Any]]) -> None:
            texts[place] = _until(str(choices[0].get("text") or ""), stops[place])
            self._keep("generate_until", requests[place].args, texts[place])

        with progress_bar(f"Asking {self.endpoint.identity.model}", self._progress) as bar:
            bar(len(bodies), 0)
            self.endpoint.ask(bodies, answered, advance=lambda count: bar(0, count))
        return texts

    def _generation(self, context: str, stated: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        options = dict(normalize_gen_kwargs(stated, self.max_gen_toks))
        unknown = sorted(set(options) - _HANDLED)
        if unknown:
            raise InputError(
                f"the task asks for generation with {unknown}, which endpoints are not asked for; "
                f"known are {sorted(_HANDLED)}: change its generation_kwargs."
            )
        most = int(options["max_gen_toks"])
        room = self._length + 1 - most
        if room < 1:
            raise InputError(
                f"{most} new tokens do not fit into the context of {self._length + 1}: lower "
                "max_gen_toks."
            )
        tokens = self._begun(self.encoder.encode([context])[0])
        if len(tokens) > room:
            self.truncated += 1
            tokens = tokens[-room:]
        stop = [text for text in options["until"] if text]
        given = {name: kind(options[name]) for name, kind in _OPTIONS.items() if name in options}
        return {
            "prompt": self._sent(tokens),
            "max_tokens": most,
            "echo": False,
            "temperature": float(options["temperature"]) if options["do_sample"] else 0.0,
            "seed": int(options.get("seed", 0)),
            # More are not taken everywhere; the text is cut here in any case.
            "stop": stop[:4],
            **given,
        }, stop

    # -- before the first sample ----------------------------------------------------------

    def _settle(self, use: str, prompts: Sequence[Sequence[int]]) -> None:
        """Find out how the server is asked and whether its answers can be believed."""
        usable = [self._begun(prompt)[: self._length] for prompt in prompts if len(prompt) > 1]
        if use in self.probes:
            return
        if not usable:
            raise InputError("no prompt has two tokens or more: there is nothing to ask.")
        some = [prompt[:_LONGEST_PROBE] for prompt in spread(usable)]
        with progress_bar(f"Probing {self.endpoint.identity.model}", self._progress) as bar:
            bar(1, 0)
            if self._as_text is None:
                self._as_text = self._takes_text(some[0], scored=use == "scoring")
                if use == "scoring" and not self._as_text:
                    self._require_same_tokens(some)
            if self._journal is None:
                self._journal = self._opened()
            if use == "scoring" and self.fidelity is None:
                self.fidelity = self._check(some)
                for sentence in self.fidelity.notes():
                    say_note(f"{self.endpoint.root}: {sentence}")
                self._remember(some[0])
            self.probes[use] = self._dependence(some, use)
            bar(0, 1)
        found = self.probes[use]
        if found.invariant:
            return
        changed = (
            f"what it computes at the same time changes log-probabilities by up to "
            f"{found.max_abs_difference:.2g} nats (limit {found.tolerance:g})"
            + (f" and {found.generation_changes} texts" if found.generation_changes else "")
        )
        if not self._guarded:
            say_note(f"{self.endpoint.root}: {changed}")
            return
        self.endpoint.concurrency = self._batch = 1
        say_note(f"{self.endpoint.root}: {changed}, so it is asked one sample at a time")

    def _takes_text(self, prompt: list[int], scored: bool) -> bool:
        """Whether the server takes no token ids; one that gives no likelihoods is refused."""
        self._as_text = False
        body = self._scoring([prompt], 1) if scored else self._next(prompt, None)
        for again in (True, True, False):
            try:
                [first] = self.endpoint.ask_one(body, once=True)
            except RefusedError as error:
                if error.status in (401, 403, 404):
                    self.endpoint.ask_one(body)  # says what is missing
                break
            except AgainError:  # some servers call a wrong type an internal error
                if not again:
                    break
                continue
            if scored:
                self._read(first, prompt)
            return False
        self._as_text = True
        if scored:
            self._read_as_text(prompt)
        else:
            self.endpoint.ask_one(self._next(prompt, None))
        return True

    def _require_same_tokens(self, prompts: Sequence[list[int]]) -> None:
        """Refuse a server that would read the texts in other tokens than those it is sent."""
        begin = [self.encoder.prefix_id]
        own = [prompt[1:] if self._bos and prompt[:1] == begin else prompt for prompt in prompts]
        texts = [self.tokenizer.decode(p, clean_up_tokenization_spaces=False) for p in own]
        whole = self.encoder.encode(texts, add_special_tokens=False)
        # One that was cut may be read otherwise.
        read = [p for p, again in zip(own, whole, strict=True) if begin + again == p or again == p]
        self._as_text = True
        try:
            for prompt in read[:_FIDELITY_PROMPTS]:
                self._read_as_text(prompt)
        except NoLikelihoodsError:
            return  # it takes tokens only
        finally:
            self._as_text, self._bare = False, False

    def _read_as_text(self, prompt: list[int]) -> None:
        """Whether the server puts a token before a text, and the tokenizer as well."""
        begin = self.encoder.prefix_id
        found: Exception | None = None
        for bare in (True, False) if prompt[:1] == [begin] else (False,):
            self._bare = bare
            try:
                choice = self._read(None, prompt)
            except DisagreementError as error:
                found = error
                continue
            read = (choice.get("usage") or {}).get("prompt_tokens")
            if read in (None, len(prompt)):
                return
            more = "more" if read > len(prompt) else "fewer"
            found = DisagreementError(
                f"the server at {self.endpoint.root} reads {read} tokens in a prompt of "
                f"{len(prompt)}, {more} than the tokenizer: it puts a token before each text. "
                "Evaluate with bos=true where the model is meant to be read so, or serve it "
                "without."
            )
        raise found or EngineError("no prompt was read: this is a mistake in mlflow-degrade.")

    def _read(self, choice: dict[str, Any] | None, prompt: list[int]) -> dict[str, Any]:
        """What is answered of a prompt, asked or given; refused where it has no likelihoods."""
        try:
            if choice is None:
                [choice] = self.endpoint.ask_one(self._scoring([prompt], 1))
            self._reading.echo(choice, prompt)
        except NoLikelihoodsError as error:
            raise NoLikelihoodsError(f"{error}. {_REMEDY}") from error
        except EngineError as error:
            if any(word in str(error) for word in ("logprobs", "logits_all", "echo")):
                raise NoLikelihoodsError(f"{error} {_REMEDY}") from error
            raise
        return choice

    def _next(self, prompt: Sequence[int], top: int | None, count: int = 1) -> dict[str, Any]:
        """A body that asks for what comes after a prompt."""
        body: dict[str, Any] = {
            "prompt": self._sent(prompt), "max_tokens": count, "temperature": 0, "echo": False
        }  # fmt: skip
        return body if top is None else {**body, "logprobs": top}

    def _check(self, some: Sequence[list[int]]) -> Fidelity:
        few = list(some[:_FIDELITY_PROMPTS])

        def echoes() -> list[Echo]:
            return self._all(few, top=TOP, concurrency=1)

        def after(prompt: Sequence[int]) -> Mapping[str, float] | None:
            [choice] = self.endpoint.ask_one(self._next(prompt, TOP))
            read = (choice.get("usage") or {}).get("prompt_tokens")
            if self._as_text and read not in (None, len(prompt)):
                return None  # cut there, the text is read in other tokens
            stated = (choice.get("logprobs") or {}).get("top_logprobs") or [None]
            first: Mapping[str, float] | None = stated[0]
            return first

        return check_fidelity(few, echoes, after, self.endpoint.root)

    def _all(self, prompts: Sequence[list[int]], **how: Any) -> list[Echo]:
        found: dict[int, Echo] = {}
        self._echoes(prompts, lambda place, echo: found.update({place: echo}), batch=1, **how)
        return [found[place] for place in range(len(prompts))]

    def _dependence(self, some: Sequence[list[int]], use: str) -> BatchInvariance:
        """Each prompt alone and among others."""
        alone: list[Score] = []
        together: list[Score] = []
        changes = None
        wide = max(2, min(len(some), max(self.endpoint.concurrency, 8)))
        if use == "scoring":
            since = [max(1, len(prompt) // 2) for prompt in some]
            alone = _scores(self._all(some, since=since, concurrency=1))
            found: dict[int, Echo] = {}
            # Ours continues what prompts begin with alike: each gets one to share that with.
            copies = 2 if self.endpoint.protocol == "mlflow" else 1
            self._echoes(
                [p for each in some for p in (each, [*each[:-1], each[0]])[:copies]],
                lambda place, echo: found.update({place: echo}),
                since=[first for first in since for _ in range(copies)],
                concurrency=wide,
                batch=self._batch if self._batch > 1 else 1,
            )
            together = _scores([found[copies * place] for place in range(len(some))])
        else:
            few = [prompt[-(self._length - _NEW_TOKENS) :] for prompt in some[:_NEW_TOKENS]]
            bodies = [self._next(prompt, None, _NEW_TOKENS) for prompt in few]
            texts: list[dict[int, str]] = [{}, {}]
            for place, width in enumerate((1, wide)):
                self.endpoint.ask(bodies, _kept(texts[place]), concurrency=width)
            changes = sum(texts[0][at] != texts[1][at] for at in texts[0])
            alone = together = [Score(0.0, True)]
        return BatchInvariance.between(
            alone, together, prompts=len(some), tolerance=TOLERANCE, generation_changes=changes
        )

    def _remember(self, prompt: list[int]) -> None:
        """Know the model again by its answer, also that of an evaluation that was broken off."""
        journal = self._journal
        now = self.endpoint.remember(self._scoring([prompt], 1))
        if journal is None:
            return
        before = journal.answer("canary", tuple(prompt))
        if before is not None:
            same = len(before) == len(now) and all(
                abs(a - b) <= TOLERANCE for a, b in zip(before, now, strict=True)
            )
            if same:
                return
            say_note("answers of a broken-off evaluation are of other weights, and left out")
            journal.__exit__(None, None, None)
            journal.path.unlink(missing_ok=True)
            self._journal = journal = self._opened()
        journal.add_partial("canary", tuple(prompt), now)

    def _opened(self) -> Journal:
        """The answers of an evaluation that was broken off, and room for more."""
        from lm_eval import __version__ as version

        where = self.folder / "tokenizer.json"
        key = {
            "identity": self.facts(),
            "tokenizer": digest_file(where) if where.is_file() else str(self.folder),
            "length": self._length,
            "bos": self._bos,
            "rerun": self._rerun,
            "lm_eval": version,
        }
        name = digest_json(key).removeprefix("sha256:")[:24]
        journal = Journal(cache_root() / "endpoint" / f"{name}.jsonl")
        journal.__enter__()
        self.set_cache_hook(journal)
        return journal


def _scores(echoes: Sequence[Echo]) -> list[Score]:
    """One score per token, of the prompts' tokens that have one."""
    found = []
    for echo in echoes:
        for value, top in zip(echo.logprobs, echo.tops, strict=True):
            if value is not None:
                likely = top is not None and value >= max(top.values(), default=value)
                found.append(Score(value, likely))
    return found


def _kept(texts: dict[int, str]) -> Callable[[int, list[dict[str, Any]]], None]:
    """Puts the text of an answer into its place."""
    return lambda at, choices: texts.update({at: str(choices[0].get("text"))})


def _until(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of some others."""
    ends = [text.index(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else text
