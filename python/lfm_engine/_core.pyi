"""
The C++ core of lfm-engine: model, sequence states and scheduler.
"""

from __future__ import annotations

import collections.abc
import typing

import numpy
import numpy.typing
import typing_extensions

__all__: list[str] = [
    "FileMap",
    "HookSite",
    "Model",
    "PrefixCache",
    "ProcessorParams",
    "Scheduler",
    "State",
    "bf16_to_dlpack",
    "cpu_info",
    "dequantize",
    "forked_after_parallel",
    "measure_gemm",
    "measure_read_bandwidth",
    "process_logits",
    "release_free_memory",
]

class FileMap:
    """
    A file mapped read-only and shared, whose bytes a model uses in place.
    """
    def __init__(self, fd: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Maps the whole file open at `fd`.
        """
    def populate(self, offset: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Starts to map all pages from `offset` on ahead of their use, in a thread that ends with the map.
        """
    @property
    def bytes(self) -> numpy.typing.NDArray[numpy.uint8]:
        """
        The file, uint8 [size], read-only; keeps the map.
        """

class State:
    """
    KV pages and conv state of one sequence; made by Model.new_state().
    """
    def append_page(
        self, tokens: numpy.ndarray, kv: typing.Annotated[numpy.typing.ArrayLike, numpy.uint8]
    ) -> None:
        """
        Appends at most 64 tokens with their K and V as `page` gave them, after pages that are full.
        """
    def common_prefix(self, input_ids: numpy.ndarray) -> int:
        """
        How many of input_ids [n] are the tokens that this state begins with.
        """
    def conv(self, layer: typing.SupportsInt | typing.SupportsIndex) -> numpy.ndarray:
        """
        The conv state of a layer: the last B * x, oldest first, float32 [conv_L_cache - 1, hidden_size]. Read-only and without a copy; it stays as it is when the state goes on. ValueError after truncate(), until the next forward pass.
        """
    def key_page(
        self,
        layer: typing.SupportsInt | typing.SupportsIndex,
        page: typing.SupportsInt | typing.SupportsIndex,
    ) -> numpy.ndarray:
        """
        The keys of the 64 tokens from 64 * page on, in the type of the state (bfloat16: of ml_dtypes, else its bits as uint16), [kv_heads, 64, head_dim / p, p]; p is 1 in float32, else 2. Read-only and without a copy; it stays as it is when the state goes on. Slots beyond the length are undefined.
        """
    def key_scales(
        self,
        layer: typing.SupportsInt | typing.SupportsIndex,
        page: typing.SupportsInt | typing.SupportsIndex,
    ) -> numpy.ndarray:
        """
        What the keys of key_page are multiplied with, int8 states only: bfloat16 [kv_heads, 64], one per token.
        """
    def keys(
        self, layer: typing.SupportsInt | typing.SupportsIndex
    ) -> numpy.typing.NDArray[numpy.float32]:
        """
        A copy of the keys of a layer, rotated, float32 [kv_heads, length, head_dim].
        """
    def page(
        self, index: typing.SupportsInt | typing.SupportsIndex
    ) -> numpy.typing.NDArray[numpy.uint8]:
        """
        A copy of K and V of the 64 tokens from 64 * index on, uint8 [page bytes], in the engine's layout.
        """
    def restore(self, snapshot: State) -> None:
        """
        Go back to a snapshot of this model's state, exactly.
        """
    def snapshot(self) -> State:
        """
        An independent copy that shares KV pages until either side writes to them.
        """
    def truncate(self, length: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Goes back to the first `length` tokens, exactly; ValueError if there are fewer. The next forward pass runs the last few tokens before them once more, to rebuild the conv state.
        """
    def value_page(
        self,
        layer: typing.SupportsInt | typing.SupportsIndex,
        page: typing.SupportsInt | typing.SupportsIndex,
    ) -> numpy.ndarray:
        """
        The same of the values, [kv_heads, 64 / p, p, head_dim].
        """
    def value_scales(
        self,
        layer: typing.SupportsInt | typing.SupportsIndex,
        page: typing.SupportsInt | typing.SupportsIndex,
    ) -> numpy.ndarray:
        """
        The same of the values.
        """
    def values(
        self, layer: typing.SupportsInt | typing.SupportsIndex
    ) -> numpy.typing.NDArray[numpy.float32]:
        """
        A copy of the values of a layer, float32 [kv_heads, length, head_dim].
        """
    @property
    def length(self) -> int:
        """
        Tokens processed.
        """
    @property
    def nbytes(self) -> int:
        """
        Bytes of pages (shared ones too) and conv state.
        """
    @property
    def shared_nbytes(self) -> int:
        """
        Bytes of pages that other states or caches hold too.
        """
    @property
    def tokens(self) -> numpy.typing.NDArray[numpy.int32]:
        """
        A copy of the tokens, int32 [length].
        """

class HookSite:
    """
    Where a hook is called: the point, and which tokens the rows of its array are.
    """
    @property
    def layer(self) -> int | None:
        """
        None outside of layers.
        """
    @property
    def name(self) -> str: ...
    @property
    def positions(self) -> numpy.typing.NDArray[numpy.int64]:
        """
        int64 [rows]: the position of each row's token.
        """
    @property
    def sequences(self) -> numpy.typing.NDArray[numpy.int64]:
        """
        int64 [rows]: which of the sequences that share this pass each row belongs to.
        """

class Model:
    """
    Immutable weights and the forward pass.
    """
    def __init__(
        self,
        config: typing.Any,
        checkpoint: typing.Any,
        dtype: str,
        device: str = "cpu",
        num_threads: typing.SupportsInt | typing.SupportsIndex = 0,
        kv_dtype: str = "auto",
        importance: collections.abc.Mapping[
            str, typing.Annotated[numpy.typing.ArrayLike, numpy.float32]
        ] = {},
    ) -> None:
        """
        config: checkpoint.ModelConfig; checkpoint: a checkpoint.Checkpoint; dtype: 'float32', 'bfloat16', 'int8' or 'int4'; num_threads: 0 takes the physical cores that this process may use; kv_dtype: type of K and V in states, 'float32', 'bfloat16', 'int8' or 'auto' (float32 for float32 weights, else bfloat16).
        """
    def describe_weights(self) -> dict[str, tuple[list[int], str]]:
        """
        Name to (shape, layout) of every tensor; layout 'float32' lies in memory as it is.
        """
    def export_weights(
        self,
    ) -> tuple[
        list[tuple[str, str, tuple[int, int], list[numpy.typing.NDArray[numpy.uint8]]]],
        dict[str, numpy.typing.NDArray[numpy.float32]],
    ]:
        """
        What a packed file holds: a list of matrices (name, layout, (rows, columns), parts as uint8 arrays over the model's own memory) and a dictionary of small float32 tensors. int8 and int4 only.
        """
    def fingerprint(self) -> int:
        """
        A digest of the weights as this model holds them, the same on every CPU: of all small tensors, and of some rows of every matrix.
        """
    def forward(
        self,
        state: State,
        input_ids: numpy.ndarray,
        logits: str = "all",
        chunk: typing.SupportsInt | typing.SupportsIndex | None = None,
        out: numpy.typing.NDArray[numpy.float32] | None = None,
        taps: typing.Any = None,
    ) -> numpy.typing.NDArray[numpy.float32]:
        """
        Appends input_ids [n] to the state; returns float32 logits [n, vocab] ('all') or [1, vocab] ('last'), written to `out` if given. chunk: tokens of one pass, prefill_chunk if None. taps: as at set_taps, for this call and after those of the model.
        """
    def forward_batch(
        self,
        states: collections.abc.Sequence[State],
        input_ids: collections.abc.Sequence[numpy.ndarray],
    ) -> numpy.typing.NDArray[numpy.float32]:
        """
        One packed step of several sequences, without padding; returns the last logits of each, [batch, vocab].
        """
    def input_mean_squares(
        self, input_ids: collections.abc.Sequence[numpy.ndarray]
    ) -> dict[str, numpy.typing.NDArray[numpy.float32]]:
        """
        The mean square of each input of each linear layer over all tokens of the sequences [n], by name; float32 models only. What a model in 'int4' can be given as `importance`.
        """
    def new_state(self) -> State: ...
    def set_taps(self, taps: typing.Any) -> None:
        """
        From the next pass on, call taps.visit(array, site) at each of the points taps.names. Refers to the object weakly. None: no more calls.
        """
    def state_nbytes(self, length: typing.SupportsInt | typing.SupportsIndex) -> int:
        """
        Bytes of the state of a sequence of so many tokens.
        """
    def tap_names(self) -> list[str]:
        """
        The names of all points, in the order in which a pass comes by.
        """
    def weight_in_place(self, name: str) -> numpy.ndarray:
        """
        A tensor that lies in memory as it is (norms, convolution kernels, biases): float32, read-only and without a copy.
        """
    def weight_memory(self, name: str) -> list[numpy.typing.NDArray[numpy.uint8]]:
        """
        The memory of a packed matrix in the engine's layout, uint8 arrays, read-only and without a copy. q, k and v share one, and so do w1 and w3.
        """
    def weight_rows(
        self,
        name: str,
        begin: typing.SupportsInt | typing.SupportsIndex,
        end: typing.SupportsInt | typing.SupportsIndex,
    ) -> numpy.typing.NDArray[numpy.float32]:
        """
        A float32 copy [end - begin, columns] of rows of a packed matrix: the values that the model computes with.
        """
    @property
    def dtype(self) -> str: ...
    @property
    def isa(self) -> str: ...
    @property
    def kv_dtype(self) -> str: ...
    @property
    def linear_implementation(self) -> str:
        """
        What multiplies the matrices, e.g. 'onednn:brg:avx512_core_bf16' or 'panels:q8'.
        """
    @property
    def num_threads(self) -> int: ...
    @property
    def prefill_chunk(self) -> int:
        """
        Prompt tokens of one pass, where nothing else is asked for.
        """
    @property
    def weight_nbytes(self) -> int:
        """
        Bytes of the packed weights.
        """

class ProcessorParams:
    """
    Logits processors of a request, as in generation.GenerationConfig.
    """

    remove_invalid_values: bool
    def __init__(self) -> None: ...
    @property
    def bad_words_ids(self) -> list[list[int]]: ...
    @bad_words_ids.setter
    def bad_words_ids(
        self,
        arg0: collections.abc.Sequence[
            collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
        ],
    ) -> None: ...
    @property
    def begin_suppress_tokens(self) -> list[int]: ...
    @begin_suppress_tokens.setter
    def begin_suppress_tokens(
        self, arg0: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
    ) -> None: ...
    @property
    def exponential_decay_factor(self) -> float: ...
    @exponential_decay_factor.setter
    def exponential_decay_factor(
        self, arg0: typing.SupportsFloat | typing.SupportsIndex
    ) -> None: ...
    @property
    def exponential_decay_start(self) -> int:
        """
        Counts new tokens.
        """
    @exponential_decay_start.setter
    def exponential_decay_start(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def forced_eos_token_ids(self) -> list[int]: ...
    @forced_eos_token_ids.setter
    def forced_eos_token_ids(
        self, arg0: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
    ) -> None: ...
    @property
    def min_new_tokens(self) -> int: ...
    @min_new_tokens.setter
    def min_new_tokens(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def no_repeat_ngram_size(self) -> int: ...
    @no_repeat_ngram_size.setter
    def no_repeat_ngram_size(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def repetition_penalty(self) -> float: ...
    @repetition_penalty.setter
    def repetition_penalty(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def sequence_bias(self) -> list[tuple[list[int], float]]: ...
    @sequence_bias.setter
    def sequence_bias(
        self,
        arg0: collections.abc.Sequence[
            tuple[
                collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
                typing.SupportsFloat | typing.SupportsIndex,
            ]
        ],
    ) -> None: ...
    @property
    def suppress_tokens(self) -> list[int]: ...
    @suppress_tokens.setter
    def suppress_tokens(
        self, arg0: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
    ) -> None: ...

class PrefixCache:
    """
    K and V of what was computed, for prompts that begin alike. What was not used for longest is given up first. Safe to use from several threads.
    """
    def __init__(
        self, model: Model, max_bytes: typing.SupportsInt | typing.SupportsIndex
    ) -> None: ...
    def clear(self) -> None:
        """
        Gives everything up.
        """
    def match(self, input_ids: numpy.ndarray) -> int:
        """
        How many of input_ids [n], from the first on, are cached.
        """
    @property
    def max_bytes(self) -> int:
        """
        The budget; 0 turns the cache off. A smaller one takes effect at once.
        """
    @max_bytes.setter
    def max_bytes(self, arg1: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def nbytes(self) -> int:
        """
        Bytes held, also of what running requests share.
        """
    @property
    def reused_tokens(self) -> int:
        """
        Tokens that were not computed again so far.
        """

class Scheduler:
    """
    Continuous batching over one model; requests join and leave at any step.
    """
    def __init__(
        self,
        model: Model,
        prefill_chunk: typing.SupportsInt | typing.SupportsIndex | None = None,
        prefix_cache: PrefixCache | None = None,
    ) -> None: ...
    def add(
        self,
        input_ids: numpy.ndarray,
        *,
        max_new_tokens: typing.SupportsInt | typing.SupportsIndex,
        eos_token_ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
        do_sample: bool = False,
        temperature: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        top_k: typing.SupportsInt | typing.SupportsIndex = 0,
        top_p: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        min_p: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        typical_p: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        epsilon_cutoff: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        eta_cutoff: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        seed: typing.SupportsInt | typing.SupportsIndex = 0,
        stream: typing.SupportsInt | typing.SupportsIndex = 0,
        processors: ProcessorParams | None = None,
        speculation: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> int:
        """
        Adds a request and returns its id.
        """
    def append(
        self, request: typing.SupportsInt | typing.SupportsIndex, token_ids: numpy.ndarray
    ) -> list[tuple[int, int, str]]:
        """
        Appends tokens [n] that need no sampling: they count as generated and are computed with the next step. Returns one event, as from step(), for each token taken: none after the one that ends the request.
        """
    def cancel(self, request: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    def set_hook(
        self,
        request: typing.SupportsInt | typing.SupportsIndex,
        stage: str,
        hook: collections.abc.Callable[[numpy.typing.NDArray[numpy.float32]], None] | None,
    ) -> None:
        """
        Calls hook(row) for each token of this request that is sampled, with float32 [1, vocab] over the logits themselves: 'raw' (the model's), 'processed' (before temperature and what follows) or 'scores' (what the token was chosen from). Changes in place count in the first two. If it raises, the request ends.
        """
    def set_mask(
        self, request: typing.SupportsInt | typing.SupportsIndex, mask: numpy.ndarray | None
    ) -> None:
        """
        Only tokens whose bit is set can be sampled from now on; None: any. uint32 [ceil(vocab / 32)], low bit first; not copied, read at each step.
        """
    def set_normalize_scores(
        self, request: typing.SupportsInt | typing.SupportsIndex, normalize: bool
    ) -> None:
        """
        Whether the 'scores' of a request are log-probabilities.
        """
    def step(self) -> list[tuple[int, int, str]]:
        """
        At most one forward pass; returns (request, token, finish) with finish '', 'stop', 'length' or 'error: ...' (token -1).
        """
    def take_error(self, request: typing.SupportsInt | typing.SupportsIndex) -> typing.Any:
        """
        The exception that a hook of this request raised, once; None if there is none.
        """
    def take_state(self, request: typing.SupportsInt | typing.SupportsIndex) -> State:
        """
        The state of a request with use_state that has ended, once. It lacks the last token, and forced ones before it.
        """
    def use_state(self, request: typing.SupportsInt | typing.SupportsIndex, state: State) -> None:
        """
        The request goes on from what its prompt and the state have in common, before its first step. The state is not changed; that of the request can be taken when it has ended.
        """
    @property
    def accepted_tokens(self) -> int:
        """
        Those of them that came.
        """
    @property
    def drafted_tokens(self) -> int:
        """
        Tokens that speculation drafted so far.
        """
    @property
    def idle(self) -> bool: ...
    @property
    def passes(self) -> int:
        """
        Forward passes so far.
        """

def bf16_to_dlpack(array: numpy.ndarray, versioned: bool) -> typing_extensions.CapsuleType:
    """
    A DLPack capsule over an array of bfloat16 (elements of 2 bytes), which it keeps alive. versioned: of DLPack 1, which can say that it is read-only.
    """

def cpu_info() -> dict[str, typing.Any]:
    """
    isa in use, isa detected, all isas of this CPU, and the default number of threads.
    """

def dequantize(
    data: typing.Annotated[numpy.typing.ArrayLike, numpy.uint8], dtype: str
) -> numpy.typing.NDArray[numpy.float32]:
    """
    The float32 values [rows, cols] of uint8 [rows, bytes]: blocks of GGUF's type of that name, such as 'q4_k'.
    """

def forked_after_parallel() -> bool:
    """
    True in a child forked after the engine ran: it computes with one thread there.
    """

def measure_gemm(
    dtype: str,
    rows: typing.SupportsInt | typing.SupportsIndex,
    k: typing.SupportsInt | typing.SupportsIndex,
    n: typing.SupportsInt | typing.SupportsIndex,
    num_threads: typing.SupportsInt | typing.SupportsIndex,
) -> float:
    """
    oneDNN's own matmul rate in FLOP per second, 0 where it has none.
    """

def measure_read_bandwidth(
    num_threads: typing.SupportsInt | typing.SupportsIndex,
    nbytes: typing.SupportsInt | typing.SupportsIndex = 536870912,
) -> float:
    """
    Streaming read bandwidth in bytes per second.
    """

def process_logits(
    params: ProcessorParams,
    logits: numpy.typing.NDArray[numpy.float32],
    input_ids: numpy.ndarray,
    *,
    prompt_length: typing.SupportsInt | typing.SupportsIndex,
    last: bool,
    eos_token_ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
) -> None:
    """
    Changes logits [vocab] in place, as for a request whose tokens so far are input_ids [n].
    """

def release_free_memory() -> None:
    """
    Gives memory that the C library keeps for later back to the system.
    """

__version__: str = "0.1.0"
