"""Exact log-probabilities of given texts: candidates, labels, and lm-eval's two requests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from .checkpoint import ModelConfig
from .inputs import Ids, read_prompts
from .logits_processing import Scores, log_softmax

_CHUNK = 256  # tokens of a step: their logits are in memory at once
_BATCH = 32  # sequences of a step


@dataclass(frozen=True)
class CandidateScore:
    """How likely a continuation is.

    Attributes:
        logprob: natural logarithm of the probability of all its tokens.
        token_logprobs: of each token, given those before; float32 [tokens].
        is_greedy: whether greedy decoding would give it.
    """

    logprob: float
    token_logprobs: npt.NDArray[np.float32]
    is_greedy: bool


@dataclass(frozen=True)
class Classification:
    """A text's label.

    Attributes:
        label: the likeliest one.
        probabilities: of each label, summing to 1.
        logprobs: of each label as the answer, among all answers there could be.
    """

    label: str
    probabilities: dict[str, float]
    logprobs: dict[str, float]


@dataclass
class _Node:
    """A prefix of candidates: the trie's root is the prompt."""

    children: dict[int, _Node]
    logprob: float = 0.0  # of the token that leads here
    greedy: bool = True


def _trie(candidates: Sequence[Sequence[int]]) -> _Node:
    root = _Node({})
    for candidate in candidates:
        node = root
        for token in candidate:
            node = node.children.setdefault(token, _Node({}))
    return root


def _set_children(node: _Node, row: Scores) -> None:
    logprobs = log_softmax(row)
    best = int(np.argmax(row))
    for token, child in node.children.items():
        child.logprob, child.greedy = float(logprobs[token]), token == best


def _read(root: _Node, candidate: Sequence[int]) -> CandidateScore:
    values, greedy, node = [], True, root
    for token in candidate:
        node = node.children[token]
        values.append(node.logprob)
        greedy = greedy and node.greedy
    return CandidateScore(math.fsum(values), np.array(values, np.float32), greedy)


def _append(core: _core.Model, state: _core.State, tokens: Sequence[int], node: _Node) -> _Node:
    """Score a run of tokens without branches, each from the logits before it; return its end."""
    for begin in range(0, len(tokens), _CHUNK):
        part = tokens[begin : begin + _CHUNK]
        for token, row in zip(part, core.forward(state, np.array(part), "all"), strict=True):
            node = node.children[token]
            _set_children(node, row)
    return node


def _walk(core: _core.Model, work: list[tuple[_Node, _core.State]]) -> None:
    """Score what lies below nodes whose children are scored: level by level, in batches."""
    while work:
        states: list[_core.State] = []
        nodes: list[_Node] = []
        tokens: list[Ids] = []
        later: list[tuple[_Node, _core.State]] = []
        for node, state in work:
            inner = [(t, child) for t, child in node.children.items() if child.children]
            for index, (token, child) in enumerate(inner):
                own = state if index == len(inner) - 1 else state.snapshot()
                run, end = [token], child
                while len(end.children) == 1 and next(iter(end.children.values())).children:
                    following, end = next(iter(end.children.items()))
                    run.append(following)
                if len(run) > 1:  # one forward pass in place of one for each token
                    later.append((_append(core, own, run, node), own))
                else:
                    states.append(own)
                    nodes.append(child)
                    tokens.append(np.array([token]))
        for begin in range(0, len(states), _BATCH):
            part = slice(begin, begin + _BATCH)
            logits = core.forward_batch(states[part], tokens[part])
            for node, state, row in zip(nodes[part], states[part], logits, strict=True):
                _set_children(node, row)
                later.append((node, state))
        work = later


def score_prompts(
    core: _core.Model, prompts: Sequence[Ids], candidates: Sequence[Sequence[Sequence[int]]]
) -> list[list[CandidateScore]]:
    """Score each prompt's candidates; what all prompts begin with is computed once."""
    shared = _common_prefix(prompts)
    base = core.new_state()
    if shared:
        core.forward(base, prompts[0][:shared], "last")
    out: list[list[CandidateScore]] = []
    for begin in range(0, len(prompts), _BATCH):
        group = prompts[begin : begin + _BATCH]
        tries = [_trie(each) for each in candidates[begin : begin + _BATCH]]
        states = [base.snapshot() for _ in group]
        work: list[tuple[_Node, _core.State]] = []
        for part in _packed([prompt[shared:] for prompt in group]):
            rows = (
                core.forward_batch([states[i] for i in part], [group[i][shared:] for i in part])
                if len(part) > 1
                else core.forward(states[part[0]], group[part[0]][shared:], "last")
            )
            for index, row in zip(part, rows, strict=True):
                _set_children(tries[index], row)
                work.append((tries[index], states[index]))
        _walk(core, work)
        for root, each in zip(tries, candidates[begin : begin + _BATCH], strict=True):
            out.append([_read(root, candidate) for candidate in each])
    return out


def _common_prefix(prompts: Sequence[Ids]) -> int:
    """Tokens that all prompts begin with; one at least is left to each."""
    if len(prompts) < 2:
        return 0
    length = min(prompt.size for prompt in prompts) - 1
    for prompt in prompts[1:]:
        differ = np.flatnonzero(prompt[:length] != prompts[0][:length])
        length = int(differ[0]) if differ.size else length
    return length


def _packed(rows: Sequence[Ids]) -> list[list[int]]:
    """Indices of rows that go through the model together: _CHUNK tokens, or one row."""
    groups: list[list[int]] = []
    room = 0
    for index, row in enumerate(rows):
        if row.size > room:
            groups.append([])
            room = _CHUNK
        groups[-1].append(index)
        room -= row.size
    return groups


def _encode(value: Any, tokenizer: Any, argument: str) -> list[int]:
    """Ids of a text (no special tokens are added) or of ids."""
    if not isinstance(value, str):
        (row,) = read_prompts(value).rows
        return [int(token) for token in row]
    if tokenizer is None:
        raise ValueError(f"{argument} is text: tokenizer= is needed")
    return [int(token) for token in tokenizer(value, add_special_tokens=False).input_ids]


class Scoring:
    """The methods of `CausalLM` that score given texts."""

    core: _core.Model
    config: ModelConfig

    def score(
        self, prompt: Any, candidates: Sequence[Any], *, tokenizer: Any = None
    ) -> list[CandidateScore]:
        """Exact log-probabilities of continuations of a prompt.

        The prompt is computed once, and so is each beginning that candidates share. A candidate's
        result has the same bits alone and among others.

        Args:
            prompt: ids [length], or text. No special tokens are added to text.
            candidates: ids or texts, each one token at least.
            tokenizer: for text.

        Raises:
            ValueError: no candidates, an empty one, ids outside the vocabulary, or prompt and
                candidate over the context.
        """
        if isinstance(candidates, str) or len(candidates) == 0:
            raise ValueError("candidates must be a list of at least one continuation")
        (row,) = read_prompts(_encode(prompt, tokenizer, "prompt")).rows
        ids = [_encode(candidate, tokenizer, "candidates") for candidate in candidates]
        self._check_lengths([row], [ids])
        return score_prompts(self.core, [row], [ids])[0]

    def classify(
        self,
        texts: Sequence[str],
        labels: Sequence[str],
        *,
        tokenizer: Any,
        instruction: str | None = None,
        chat_template: str | None = None,
    ) -> list[Classification]:
        """Label texts: which of the labels is the likeliest answer to `instruction` and the text.

        The instruction goes into the system message and is computed once for all texts.

        Args:
            texts: a user's message each.
            labels: at least two different ones.
            tokenizer: with a chat template.
            instruction: what to do; None for one that lists the labels.
            chat_template: as in `chat`.

        Raises:
            ValueError: no texts, fewer than two labels or equal ones, no chat template, or a text
                over the context.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError("texts must be a list of strings")
        labels = [labels] if isinstance(labels, str) else list(labels)
        if len(set(labels)) < 2 or len(set(labels)) != len(labels):
            raise ValueError(f"labels must be at least two different strings, not {labels!r}")
        if instruction is None:
            instruction = f"Classify the text. Answer with one of: {', '.join(labels)}."
        prompts = []
        for text in texts:
            messages = [
                {"role": "system", "content": instruction},
                {"role": "user", "content": text},
            ]
            rendered = tokenizer.apply_chat_template(
                messages, chat_template=chat_template, add_generation_prompt=True, tokenize=False
            )
            prompts.append(np.array(_encode(rendered, tokenizer, "texts"), np.int64))
        ids = [_encode(label, tokenizer, "labels") for label in labels]
        # Where a label begins another, its end tells them apart.
        if any(a is not b and b[: len(a)] == a for a in ids for b in ids):
            ids = [[*label, *self.config.eos_token_id[:1]] for label in ids]
        if not prompts:
            return []
        candidates = [ids] * len(prompts)
        self._check_lengths(prompts, candidates)
        out = []
        for scores in score_prompts(self.core, prompts, candidates):
            logprobs = {label: score.logprob for label, score in zip(labels, scores, strict=True)}
            best = max(labels, key=logprobs.__getitem__)
            weights = {label: math.exp(logprobs[label] - logprobs[best]) for label in labels}
            total = math.fsum(weights.values())
            probabilities = {label: weight / total for label, weight in weights.items()}
            out.append(Classification(best, probabilities, logprobs))
        return out

    def loglikelihood(
        self, requests: Sequence[tuple[Any, Any]], *, tokenizer: Any = None
    ) -> list[tuple[float, bool]]:
        """lm-eval's request: (log-probability of the continuation, whether greedy gives it).

        As there, spaces at a context's end count to the continuation, which is encoded together
        with its context; an empty context is the token that begins a sequence.

        Args:
            requests: (context, continuation): texts, or ids.
            tokenizer: for text.

        Raises:
            ValueError: as `score`.
        """
        groups: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        for index, (context, continuation) in enumerate(requests):
            first, second = self._encode_pair(context, continuation, tokenizer)
            if not second:
                raise ValueError(f"requests: the continuation of request {index} is empty")
            groups.setdefault(tuple(first), []).append((index, second))
        out: dict[int, tuple[float, bool]] = {}
        for prompt, members in groups.items():
            for (index, _), score in zip(
                members, self.score(list(prompt), [ids for _, ids in members]), strict=True
            ):
                out[index] = (score.logprob, score.is_greedy)
        return [out[index] for index in range(len(requests))]

    def loglikelihood_rolling(
        self, texts: Sequence[Any], *, tokenizer: Any = None, max_length: int | None = None
    ) -> list[float]:
        """lm-eval's request: log-probability of each whole text, for perplexity.

        A text starts after the token that begins a sequence. One longer than `max_length` is cut
        into windows; each token is counted once, and the last window reaches back to be full.

        Args:
            texts: texts, or ids.
            tokenizer: for text.
            max_length: tokens of a window; None for the model's context.

        Raises:
            ValueError: an empty text, or a window longer than the context.
        """
        limit = self.config.max_position_embeddings
        window = limit if max_length is None else max_length
        if not 1 <= window <= limit:
            raise ValueError(f"max_length must be between 1 and {limit}, not {max_length}")
        out = []
        for text in texts:
            tokens = _encode(text, tokenizer, "texts")
            if not tokens:
                raise ValueError("texts: at least one token is needed")
            whole = [self._prefix_id(tokenizer), *tokens]
            total = 0.0
            for begin in range(0, len(tokens), window):
                end = min(begin + window, len(tokens))
                start = 0 if begin == 0 else end - window  # whole[i] comes before tokens[i]
                prompt = whole[start : begin + 1]
                total += self.score(prompt, [tokens[begin:end]])[0].logprob
            out.append(total)
        return out

    def _prefix_id(self, tokenizer: Any) -> int:
        for owner in (tokenizer, self.config):
            token = getattr(owner, "bos_token_id", None)
            if token is not None:
                return int(token)
        if self.config.eos_token_id:
            return self.config.eos_token_id[0]
        raise ValueError("an empty context needs a tokenizer or model with a bos or eos token")

    def _encode_pair(
        self, context: Any, continuation: Any, tokenizer: Any
    ) -> tuple[list[int], list[int]]:
        if not isinstance(context, str) or not isinstance(continuation, str):
            if len(context) == 0:
                return [self._prefix_id(tokenizer)], _encode(continuation, tokenizer, "requests")
            return (
                _encode(context, tokenizer, "requests"),
                _encode(continuation, tokenizer, "requests"),
            )
        if not context:
            return [self._prefix_id(tokenizer)], _encode(continuation, tokenizer, "requests")
        stripped = context.rstrip()
        continuation, context = context[len(stripped) :] + continuation, stripped
        first = _encode(context, tokenizer, "requests") if context else []
        whole = _encode(context + continuation, tokenizer, "requests")
        return first or [self._prefix_id(tokenizer)], whole[len(first) :]

    def _check_lengths(
        self, prompts: Sequence[Ids], candidates: Sequence[Sequence[Sequence[int]]]
    ) -> None:
        limit = self.config.max_position_embeddings
        for prompt, each in zip(prompts, candidates, strict=True):
            for candidate in each:
                if not candidate:
                    raise ValueError("candidates: an empty one")
                # The last token is not fed.
                if prompt.size + len(candidate) - 1 > limit:
                    raise ValueError(
                        f"prompt and candidate have {prompt.size + len(candidate)} tokens, more "
                        f"than the model's context of {limit}"
                    )
                for token in candidate:
                    if not 0 <= token < self.config.vocab_size:
                        raise ValueError(
                            f"candidates holds {token}, outside the vocabulary of "
                            f"{self.config.vocab_size}"
                        )
