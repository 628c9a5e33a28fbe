"""The tokenizer: text to ids and back, with the Hugging Face interface."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import tokenizers
from tokenizers import AddedToken, processors

from .chat_template import is_batch, render_chat
from .encoding import BatchEncoding, TokenIds, as_tensors, plain_ids

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDERS = ("additional_chat_templates", "chat_templates")
# transformers writes 1e30 for "no limit".
_NO_LIMIT = 1 << 62


class Tokenizer:
    """Text to token ids and back.

    Args:
        backend: the tokenizer proper; padding and truncation set in it are switched off, they
            belong to the call.
        special_tokens: named special tokens (`{"bos_token": "<s>", ...}`).
        chat_template: Jinja source, or several by name ("default", "tool_use", ...).
        config: the remaining content of tokenizer_config.json.

    Attributes:
        padding_side: "left" unless set otherwise, since generation goes on at the right end.
        model_max_length: the default limit for `truncation=True`; None when the checkpoint states
            none.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        chat_template: str | dict[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        name_or_path: str = "",
    ) -> None:
        self.backend = backend
        self.name_or_path = name_or_path
        self.chat_template = chat_template
        self.special_tokens_map: dict[str, str] = dict(special_tokens or {})
        self.padding_side = "left"
        self._config = dict(config or {})
        self.truncation_side = str(self._config.get("truncation_side", "right"))
        limit = self._config.get("model_max_length")
        known = (
            isinstance(limit, (int, float))
            and not isinstance(limit, bool)
            and 0 < limit < _NO_LIMIT
        )
        self.model_max_length: int | None = int(cast(float, limit)) if known else None
        backend.no_padding()
        backend.no_truncation()
        self._add_missing_special_tokens()
        self._special_ids = frozenset(
            index for index, token in backend.get_added_tokens_decoder().items() if token.special
        )

    # -- vocabulary --

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary without tokens added to it; `len(tokenizer)` counts all."""
        return self.backend.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    def get_vocab(self) -> dict[str, int]:
        """Return every token with its id."""
        return self.backend.get_vocab(with_added_tokens=True)

    @property
    def bos_token(self) -> str | None:
        return self.special_tokens_map.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        return self.special_tokens_map.get("eos_token")

    @property
    def pad_token(self) -> str | None:
        return self.special_tokens_map.get("pad_token")

    @pad_token.setter
    def pad_token(self, token: str) -> None:
        if self.backend.token_to_id(token) is None:
            raise ValueError(f"pad_token: {token!r} is not in the vocabulary")
        self.special_tokens_map["pad_token"] = token

    @property
    def unk_token(self) -> str | None:
        return self.special_tokens_map.get("unk_token")

    @property
    def bos_token_id(self) -> int | None:
        return self._named_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._named_id("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        return self._named_id("pad_token")

    @property
    def unk_token_id(self) -> int | None:
        return self._named_id("unk_token")

    @property
    def all_special_ids(self) -> list[int]:
        """Ids that `skip_special_tokens` leaves out, in ascending order."""
        return sorted(self._special_ids)

    @property
    def all_special_tokens(self) -> list[str]:
        """The tokens of `all_special_ids`."""
        return [str(self.backend.id_to_token(index)) for index in self.all_special_ids]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Return a token's id (a list for several); if not known, `unk_token_id`, maybe None."""
        if isinstance(tokens, str):
            index = self.backend.token_to_id(tokens)
            return self.unk_token_id if index is None else index
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: TokenIds, skip_special_tokens: bool = False) -> Any:
        """Return the token of an id (a list for several); None for an id outside the vocabulary."""
        plain = plain_ids(ids)
        if isinstance(plain, int):
            return self.backend.id_to_token(plain)
        skipped = self._special_ids if skip_special_tokens else frozenset()
        return [self.backend.id_to_token(index) for index in plain if index not in skipped]

    # -- text to ids --

    def __call__(
        self,
        text: str | Sequence[str],
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        padding_side: str | None = None,
    ) -> BatchEncoding:
        """Encode one text or several.

        Args:
            text: a string, or a list of strings.
            add_special_tokens: add what the checkpoint puts around a text (for LFM2 its first
                token).
            padding: True or "longest" pads to the longest text, "max_length" to `max_length`.
            truncation: cut to `max_length` tokens (by default the checkpoint's limit).
            return_tensors: None for lists, "np" for int64 arrays [batch, sequence], "pt" for torch
                tensors.
            padding_side: "left" or "right", by default that of the tokenizer.

        Returns:
            `input_ids` and `attention_mask` (1 for text, 0 for padding): flat lists for a string
            without `return_tensors`, else one row for each text.

        Raises:
            ValueError: wrong options, or rows of different lengths where an array is wanted.
        """
        single = isinstance(text, str)
        texts = [text] if isinstance(text, str) else list(text)
        for index, entry in enumerate(texts):
            if not isinstance(entry, str):
                raise ValueError(f"text[{index}] must be a string, not {type(entry).__name__}")
        if truncation not in (True, False):
            raise ValueError(f"truncation must be True or False, not {truncation!r}")
        limit = max_length if max_length is not None else self.model_max_length
        if truncation and limit is not None:
            rows = [self._truncated(entry, add_special_tokens, limit) for entry in texts]
        else:
            rows = self._encode_rows(texts, add_special_tokens)
        masks = [[1] * len(row) for row in rows]
        width = self._padded_width(rows, padding, limit)
        if width:
            rows, masks = self._padded(rows, masks, width, padding_side or self.padding_side)
        if return_tensors is not None:
            return as_tensors(rows, masks, return_tensors)
        if single:
            return BatchEncoding(input_ids=rows[0], attention_mask=masks[0])
        return BatchEncoding(input_ids=rows, attention_mask=masks)

    def encode(
        self,
        text: str,
        add_special_tokens: bool = True,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> Any:
        """Return the ids of one text: a list, or an array [1, sequence] with `return_tensors`."""
        options = {
            "truncation": truncation,
            "max_length": max_length,
            "return_tensors": return_tensors,
        }
        return self(
            text, add_special_tokens=add_special_tokens, **cast("dict[str, Any]", options)
        ).input_ids

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """Return the tokens of one text as the vocabulary spells them."""
        return self.backend.encode(text, add_special_tokens=add_special_tokens).tokens

    def _encode_rows(self, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        # A single text starts no thread pool: one would make a later fork unsafe.
        if len(texts) == 1:
            return [self.backend.encode(texts[0], add_special_tokens=add_special_tokens).ids]
        encoded = self.backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        return [entry.ids for entry in encoded]

    def _truncated(self, text: str, add_special_tokens: bool, limit: int) -> list[int]:
        encoding = self.backend.encode(text, add_special_tokens=False)
        extra = self.backend.num_special_tokens_to_add(False) if add_special_tokens else 0
        if limit < max(extra, 1):
            raise ValueError(f"max_length must be at least {max(extra, 1)}, not {limit}")
        encoding.truncate(limit - extra, direction=self.truncation_side)
        return self.backend.post_process(encoding, add_special_tokens=add_special_tokens).ids

    def _padded_width(self, rows: list[list[int]], padding: bool | str, limit: int | None) -> int:
        longest = max((len(row) for row in rows), default=0)
        if padding in (False, "do_not_pad"):
            return 0
        if padding in (True, "longest"):
            return longest
        if padding == "max_length":
            return longest if limit is None else max(longest, limit)
        raise ValueError(f'padding must be True, False, "longest" or "max_length", not {padding!r}')

    def _padded(
        self, rows: list[list[int]], masks: list[list[int]], width: int, side: str
    ) -> tuple[list[list[int]], list[list[int]]]:
        if side not in ("left", "right"):
            raise ValueError(f'padding_side must be "left" or "right", not {side!r}')
        if all(len(row) == width for row in rows):
            return rows, masks
        pad = self.pad_token_id
        if pad is None:
            raise ValueError(
                "padding: this tokenizer has no pad token; set tokenizer.pad_token first"
            )

        def fill(row: list[int], value: int) -> list[int]:
            missing = [value] * (width - len(row))
            return missing + row if side == "left" else row + missing

        return [fill(row, pad) for row in rows], [fill(mask, 0) for mask in masks]

    # -- ids to text --

    def decode(
        self,
        token_ids: TokenIds,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """Return the text of the ids, or a list of texts for rows of ids.

        Args:
            token_ids: an id, ids, an array or a torch tensor; rows of ids give a list.
            skip_special_tokens: leave special tokens out.
            clean_up_tokenization_spaces: accepted and ignored, as it is by transformers for BPE.

        Raises:
            ValueError: an id is negative or no integer.
        """
        plain = plain_ids(token_ids)
        if isinstance(plain, int):
            plain = [plain]
        if plain and isinstance(plain[0], list):
            return [self.decode(row, skip_special_tokens) for row in plain]
        try:
            return self.backend.decode(plain, skip_special_tokens=skip_special_tokens)
        except (OverflowError, TypeError) as error:
            raise ValueError(f"token_ids must be non-negative integers: {error}") from error

    def batch_decode(
        self,
        sequences: Iterable[TokenIds],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """Return the text of each row of ids."""
        return [self.decode(row, skip_special_tokens) for row in sequences]

    # -- chat --

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        **template_variables: Any,
    ) -> Any:
        """Turn a conversation (or a list of conversations) into the model's prompt.

        Args:
            conversation: messages `{"role": ..., "content": ...}`.
            tools: JSON schemas, or functions with type hints and a Google-style docstring.
            chat_template: Jinja source, or the name of one of the checkpoint's templates.
            add_generation_prompt: end with the header of the assistant's answer.
            continue_final_message: leave the last message open, to be continued.
            tokenize: False returns the text.
            return_dict: as in transformers 5, True: a BatchEncoding. False: the ids alone.
            template_variables: whatever the template reads besides, such as `keep_past_thinking`.

        Raises:
            ValueError: malformed messages or tools, no template, or a template that fails.
        """
        if template_variables.pop("return_assistant_tokens_mask", False):
            raise ValueError("return_assistant_tokens_mask is not supported")
        template = self.get_chat_template(chat_template, tools)
        batched = is_batch(conversation)
        texts = [
            render_chat(
                messages,
                template,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **{**self.special_tokens_map, **template_variables},
            )
            for messages in (conversation if batched else [conversation])
        ]
        text = texts if batched else texts[0]
        if not tokenize:
            return text
        encoding = self(
            text,
            add_special_tokens=False,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
        )
        return encoding if return_dict else encoding.input_ids

    def get_chat_template(
        self, chat_template: str | None = None, tools: Sequence[Any] | None = None
    ) -> str:
        """Return the Jinja source that `apply_chat_template` would use for these arguments."""
        own = self.chat_template
        if isinstance(own, dict):
            name = chat_template or (
                "tool_use" if tools is not None and "tool_use" in own else "default"
            )
            if name in own:
                return own[name]
            if chat_template is None:
                raise ValueError(
                    f"chat_template: name one of this checkpoint's templates: {sorted(own)}"
                )
        if chat_template is not None:
            return chat_template
        if not isinstance(own, str):
            raise ValueError("this checkpoint has no chat template: pass chat_template=, or set it")
        return own

    # -- files --

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> tuple[str, ...]:
        """Write tokenizer.json, its configuration and the chat templates; return their paths."""
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder}: not a folder")
        folder.mkdir(parents=True, exist_ok=True)
        config = {**self._config, **self.special_tokens_map}
        config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
        for key in ("chat_template", "added_tokens_decoder"):  # in files of their own
            config.pop(key, None)
        contents = {
            "tokenizer.json": self.backend.to_str(pretty=True),
            "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
        }
        templates = (
            {"default": self.chat_template}
            if isinstance(self.chat_template, str)
            else self.chat_template
        )
        for name, template in (templates or {}).items():
            if name != Path(name).name or name in ("", ".", ".."):
                raise ValueError(f"chat_template: {name!r} cannot be a file name")
            is_default = name == "default"
            contents[TEMPLATE_FILE if is_default else f"{TEMPLATE_FOLDERS[0]}/{name}.jinja"] = (
                template
            )
        for name, content in contents.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(content, encoding="utf-8", newline="")
        return tuple(str(folder / name) for name in contents)

    def __repr__(self) -> str:
        return f"Tokenizer(name_or_path={self.name_or_path!r}, vocab_size={self.vocab_size})"

    # -- set-up --

    def _named_id(self, name: str) -> int | None:
        token = self.special_tokens_map.get(name)
        return None if token is None else self.backend.token_to_id(token)

    def _add_missing_special_tokens(self) -> None:
        """As transformers does, keep every token whole that the configuration calls special."""
        present = {
            token.content: token for token in self.backend.get_added_tokens_decoder().values()
        }
        declared = self._config.get("added_tokens_decoder")
        entries = declared.items() if isinstance(declared, dict) else ()
        tokens = [
            read_added_token(entry) for _, entry in sorted(entries, key=lambda item: int(item[0]))
        ]
        new = [token for token in tokens if token is not None and token.content not in present]
        names = {token.content for token in new}
        for content in self.special_tokens_map.values():
            if content not in names and not (content in present and present[content].special):
                new.append(AddedToken(content, special=True, normalized=False))
                names.add(content)
        if new:
            self.backend.add_tokens(new)


def set_affixes(
    backend: tokenizers.Tokenizer, bos_token: str | None, eos_token: str | None
) -> None:
    """Let `backend` put these tokens before and after every text; None for neither."""
    before = f"{bos_token}:0 " if bos_token is not None else ""
    after = f" {eos_token}:0" if eos_token is not None else ""
    names = [token for token in (bos_token, eos_token) if token is not None]
    single = f"{before}$A:0{after}"
    backend.post_processor = processors.TemplateProcessing(
        single=single,
        pair=f"{single} {before.replace(':0', ':1')}$B:1{after.replace(':0', ':1')}",
        special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(names)],
    )


def read_added_token(entry: Any) -> AddedToken | None:
    """Read a special token of tokenizer_config.json: a string, or an object with `content`."""
    if isinstance(entry, str):
        return AddedToken(entry, special=True, normalized=False)
    if isinstance(entry, dict) and isinstance(entry.get("content"), str):
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        return AddedToken(
            entry["content"], **{flag: bool(entry[flag]) for flag in flags if flag in entry}
        )
    return None
