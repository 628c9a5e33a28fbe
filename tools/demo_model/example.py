"""A conversation to learn from or to be tested with."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Example:
    """A conversation that ends before the assistant's `answer`.

    Attributes:
        expect: what the answer must mean: calls, a JSON value, a label or a text.
        schema: JSON schema of the answer, for extractions.
        labels: what a classification may choose from.
    """

    task: str
    messages: list[dict[str, str]]
    answer: str
    expect: Any
    tools: list[dict[str, Any]] = field(default_factory=list)
    schema: dict[str, Any] | None = None
    labels: list[str] = field(default_factory=list)

    def prompt(self) -> str:
        """Render as LFM2.5's chat template does, up to the assistant's answer."""
        return "".join(text for text, _ in self.parts()[:-1])

    def parts(self) -> list[tuple[str, bool]]:
        """Return the whole conversation in parts; True marks what the assistant says."""
        messages = list(self.messages)
        system = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
        if self.tools:
            listed = ", ".join(json.dumps(tool, ensure_ascii=False) for tool in self.tools)
            system += ("\n" if system else "") + f"List of tools: [{listed}]"
        parts = [("<|startoftext|>", False)]
        if system:
            parts.append((f"<|im_start|>system\n{system}<|im_end|>\n", False))
        for message in messages:
            parts.append((f"<|im_start|>{message['role']}\n", False))
            parts.append((f"{message['content']}<|im_end|>", message["role"] == "assistant"))
            parts.append(("\n", False))
        parts.append(("<|im_start|>assistant\n", False))
        return [*parts, (f"{self.answer}<|im_end|>", True)]


def user(text: str, system: str = "") -> list[dict[str, str]]:
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": text}]
