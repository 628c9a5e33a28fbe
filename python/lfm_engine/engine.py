"""Requests from many threads or asyncio tasks, computed together as they come."""

from __future__ import annotations

import atexit
import contextlib
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .constraint import Constraint
from .generate import GenerateOutput, as_ids, check_together, output_of, warn_if_forked
from .generation import GenerationConfig
from .inputs import Ids, read_prompts
from .logits_processing import callables
from .response_format import make_constraints
from .rows import Rows, end_ids, new_token_limit

if TYPE_CHECKING:
    from .model import CausalLM


class Request:
    """A sequence that an `Engine` generates. Made by `Engine.submit`.

    Iterate over it for the new tokens as they come (`for` in threads, `async for` in asyncio; as
    many consumers as one likes, each from the first token on), `await` it or call `result()`.

    Attributes:
        prompt: its ids, int64 [length].
        nbytes: of its state at most.
    """

    def __init__(self, engine: Engine, prompt: Ids, nbytes: int) -> None:
        self.prompt = prompt
        self._engine = engine
        self.nbytes = nbytes
        self._tokens: list[int] = []
        self._output: GenerateOutput | None = None
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._wakers: list[Callable[[], None]] = []

    @property
    def done(self) -> bool:
        """Whether it ended: finished, failed or cancelled."""
        return self._output is not None or self._error is not None

    def cancel(self) -> None:
        """End it at the next step, with finish reason "cancelled"; nothing if it ended already."""
        self._engine._cancel(self)

    def result(self, timeout: float | None = None) -> GenerateOutput:
        """Wait for the end.

        Returns:
            What `generate(prompt, return_dict_in_generate=True)` gives, `.sequences` int64
            [1, prompt + new tokens]; finish reason "cancelled" where it was.

        Raises:
            TimeoutError: it did not end within so many seconds; it goes on.
            Exception: what a callable or constraint of the request raised, or the model.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.done, timeout):
                raise TimeoutError(f"the request did not end within {timeout} s")
        return self._outcome()

    def __iter__(self) -> Iterator[int]:
        seen = 0
        while True:
            with self._changed:
                while not self._has_more(seen):
                    self._changed.wait()
            if seen == len(self._tokens):
                break
            yield self._tokens[seen]
            seen += 1
        self._outcome()

    async def __aiter__(self) -> AsyncIterator[int]:
        seen = 0
        while True:
            await self._wait(partial(self._has_more, seen))
            if seen == len(self._tokens):
                break
            yield self._tokens[seen]
            seen += 1
        self._outcome()

    def _has_more(self, seen: int) -> bool:
        return self.done or len(self._tokens) > seen

    def __await__(self) -> Generator[Any, None, GenerateOutput]:
        async def wait() -> GenerateOutput:
            await self._wait(lambda: self.done)
            return self._outcome()

        return wait().__await__()

    async def _wait(self, ready: Callable[[], bool]) -> None:
        import asyncio  # imported late: 8 MB, which only those who wait in it need

        loop = asyncio.get_running_loop()
        while True:
            woken = asyncio.Event()

            def wake(woken: asyncio.Event = woken) -> None:
                with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
                    loop.call_soon_threadsafe(woken.set)

            with self._changed:
                if ready():
                    return
                self._wakers.append(wake)
            await woken.wait()

    def _outcome(self) -> GenerateOutput:
        if self._error is not None:
            raise self._error
        assert self._output is not None
        return self._output

    def _notify(self, change: Callable[[], None]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()
            wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()

    def _put(self, token: int) -> None:
        self._notify(lambda: self._tokens.append(token))

    def _finish(self, output: GenerateOutput | None, error: BaseException | None) -> None:
        def change() -> None:
            self._output, self._error = output, error

        self._notify(change)


class Engine:
    """Continuous batching: requests join and leave at any step, and none changes another.

        with Engine(model) as engine:
            requests = [engine.submit(ids, max_new_tokens=64) for ids in prompts]
            for token in requests[0]: ...
            requests[1].result().sequences

        async for token in engine.submit(ids): ...   # in asyncio
        output = await engine.submit(ids)

    `submit` may be called from any thread or task. One thread of the engine computes; callables
    and streamers of requests are called there. It ends with `close()`, or with the program.

    Args:
        model: several engines and calls of `generate` may share one.
        max_state_bytes: requests wait, first come first served, while the states of those that run
            could grow beyond this (K and V of prompt and `max_new_tokens`, see
            `CausalLM.state_nbytes`); None: no limit.
        max_running: requests that run at once at most; None: no limit.
    """

    def __init__(
        self,
        model: CausalLM,
        *,
        max_state_bytes: int | None = None,
        max_running: int | None = None,
    ) -> None:
        for name, value in (("max_state_bytes", max_state_bytes), ("max_running", max_running)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self._model = model
        self._max_state_bytes = max_state_bytes
        self._max_running = max_running
        # All below is shared with the thread, under _changed; the rows are the thread's alone.
        self._changed = threading.Condition()
        self._waiting: deque[_Entry] = deque()
        self._running: dict[int, _Entry] = {}
        self._cancelled: set[Request] = set()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._cancel_all = False
        self._failure: BaseException | None = None
        self._rows = Rows(
            model.core, model.config, return_exceptions=True, prefix_cache=model.prefix_cache
        )
        _ENGINES.add(self)

    def submit(
        self,
        input_ids: Any,
        generation_config: GenerationConfig | None = None,
        *,
        streamer: Any = None,
        tokenizer: Any = None,
        response_format: Any = None,
        constraint: Constraint | None = None,
        prefix_allowed_tokens_fn: Callable[[int, Any], Any] | None = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        **options: Any,
    ) -> Request:
        """Add a request for one sequence; arguments are those of `CausalLM.generate`.

        Draws are those of a call of `generate` with this prompt alone and the same seed.

        Raises:
            ValueError: as in `generate`; or the request alone needs more than `max_state_bytes`.
                What only the core sees, such as ids outside the vocabulary, `result()` raises.
            RuntimeError: the engine is closed.
        """
        model = self._model
        config = (generation_config or model.generation_config).merged(
            **{**options, "return_dict_in_generate": True}
        )
        if config.num_beams != 1:
            raise ValueError("num_beams: an engine has no beam search; use generate")
        if config.output_hidden_states:
            raise ValueError("output_hidden_states: call the model on the result")
        if config.num_return_sequences != 1:
            raise ValueError("num_return_sequences: submit a request for each")
        prompts = read_prompts(input_ids)
        if len(prompts.rows) != 1:
            raise ValueError(f"input_ids: submit takes one prompt, not {len(prompts.rows)}")
        prompt = prompts.rows[0]
        made = make_constraints(
            prompts,
            response_format=response_format,
            constraint=constraint,
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            tokenizer=tokenizer,
            vocab_size=model.config.vocab_size,
            eos_ids=end_ids(config, model.config),
        )
        check_together(config, tokenizer, made is not None)
        warn_if_forked(model.core)
        processors = callables("logits_processor", logits_processor)
        criteria = callables("stopping_criteria", stopping_criteria)
        tokens = prompt.size + new_token_limit(config, model.config, prompt)
        request = Request(self, prompt, model.state_nbytes(tokens))
        if self._max_state_bytes is not None and request.nbytes > self._max_state_bytes:
            raise ValueError(
                f"prompt and max_new_tokens ({tokens} tokens) need {request.nbytes} bytes of "
                f"state, more than max_state_bytes={self._max_state_bytes}"
            )

        def on_token(token: int) -> None:
            request._put(token)
            if streamer is not None:
                streamer.put(as_ids(token))

        def start() -> int:
            if streamer is not None:
                streamer.put(prompt[None, :])
            return self._rows.add(
                prompt,
                config,
                tokenizer=tokenizer,
                constraint=made[0] if made else None,
                processors=processors,
                criteria=criteria,
                on_token=on_token,
            )

        with self._changed:
            if self._closed:
                raise RuntimeError("the engine is closed") from self._failure
            self._waiting.append(_Entry(request, streamer, start))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lfm-engine", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return request

    def close(self, *, cancel: bool = False) -> None:
        """Refuse new requests and wait until those there are have ended.

        Args:
            cancel: end them now.
        """
        with self._changed:
            self._closed = True
            # A flag, not a list of what runs: the thread may just be starting some of them.
            self._cancel_all = self._cancel_all or cancel
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.close(cancel=kind is not None)

    def _cancel(self, request: Request) -> None:
        with self._changed:
            if not request.done:
                self._cancelled.add(request)
                self._changed.notify_all()

    def _run(self) -> None:
        """What the thread does."""
        try:
            self._serve()
        except BaseException as error:  # a fault of the engine's own: nobody shall wait for ever
            with self._changed:
                self._closed, self._failure = True, error
                entries = [*self._waiting, *self._running.values()]
                self._waiting.clear()
                self._running.clear()
            for entry in entries:
                entry.end(None, error)

    def _serve(self) -> None:
        """Compute until there was nothing to do for a while."""
        while True:
            with self._changed:
                busy = self._changed.wait_for(
                    lambda: self._waiting or self._running or self._closed, _IDLE_SECONDS
                )
                if not busy or not (self._waiting or self._running):
                    self._thread = None
                    return
                if self._cancel_all:
                    entries = [*self._waiting, *self._running.values()]
                    self._cancelled.update(entry.request for entry in entries)
                cancelled, self._cancelled = self._cancelled, set()
                dropped = [entry for entry in self._waiting if entry.request in cancelled]
                for entry in dropped:
                    self._waiting.remove(entry)
                admitted = self._admit()
            for entry in dropped:
                prompt = entry.request.prompt[None, :]
                entry.end(GenerateOutput(prompt, ["cancelled"], [0]), None)
            for entry in admitted:
                self._start(entry)
            for row, entry in self._running.items():
                if entry.request in cancelled:
                    self._rows.end(row, "cancelled")
            try:
                self._rows.step()
            except Exception as error:  # no memory for the step: nobody's fault, nobody's tokens
                for row in self._running:
                    self._rows.end(row, "error", error)
            self._finish()

    def _admit(self) -> list[_Entry]:
        """Take those from the queue that may start now, first come first served."""
        admitted: list[_Entry] = []
        if not self._waiting:
            return admitted
        running = len(self._running)
        nbytes = sum(entry.request.nbytes for entry in self._running.values())
        while self._waiting:
            running += 1
            nbytes += self._waiting[0].request.nbytes
            if self._max_running is not None and running > self._max_running:
                break
            if self._max_state_bytes is not None and nbytes > self._max_state_bytes:
                break
            admitted.append(self._waiting.popleft())
        return admitted

    def _start(self, entry: _Entry) -> None:
        try:
            row = entry.start()
        except Exception as error:
            entry.end(None, error)
            return
        with self._changed:
            self._running[row] = entry

    def _finish(self) -> None:
        for number, row in list(self._rows.rows.items()):
            if not row.finish:
                continue
            del self._rows.rows[number]
            with self._changed:
                entry = self._running.pop(number)
            if row.error is not None:
                entry.end(None, row.error)
                continue
            try:
                sequence = np.concatenate([row.prompt, np.array(row.tokens, np.int64)])
                output = output_of([row], sequence[None, :])
            except Exception as error:  # no memory for kept logits, say
                entry.end(None, error)
            else:
                entry.end(output, None)


@dataclass(eq=False)
class _Entry:
    """A request with what the engine's thread does for it."""

    request: Request
    streamer: Any
    start: Callable[[], int]

    def end(self, output: GenerateOutput | None, error: BaseException | None) -> None:
        try:
            if self.streamer is not None and error is None:
                self.streamer.end()
            elif hasattr(self.streamer, "fail"):
                self.streamer.fail(error)
        except Exception as streamer_error:
            output, error = None, error or streamer_error
        self.request._finish(output, error)


_IDLE_SECONDS = 10.0
_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # A thread that computes while the interpreter goes away would bring the process down.
    for engine in list(_ENGINES):
        engine.close(cancel=True)
