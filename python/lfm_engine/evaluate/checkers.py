"""The official checkers of IFEval and IFBench, as the package if-verifiable has them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from .data import Prompt
from .extras import find_nltk_data, quiet_downloads, require, version

_SEED = 0


@dataclass(frozen=True)
class Verdict:
    """What the checkers say of one response.

    Attributes:
        strict: per instruction, whether the response follows it.
        loose: the same, allowing for a first or last line too many and for asterisks.
        error: of a checker that failed, or why there is no response; nothing is followed then.
    """

    strict: list[bool]
    loose: list[bool]
    error: str | None = None


class Checkers:
    """The checkers of one benchmark, "ifeval" or "ifbench".

    Attributes:
        name: the package with its version.

    Raises:
        MissingExtraError: if-verifiable or the data that it needs is missing.
    """

    def __init__(self, benchmark: str) -> None:
        purpose = "scoring IFEval and IFBench"
        find_nltk_data()
        with quiet_downloads():  # the import tries to download more
            self._package = require("if_verifiable", purpose)
            self._known = require(f"if_verifiable.{benchmark}", purpose).INSTRUCTION_DICT
        self._langdetect = require("langdetect", purpose)
        self._sample = {
            "ifeval": self._package.IFEvalSample,
            "ifbench": self._package.IFBenchSample,
        }[benchmark]
        self._benchmark = benchmark
        self.name = version("if-verifiable")

    def check_known(self, prompts: list[Prompt]) -> None:
        """Raise ValueError if there is an instruction without a checker: it would be left out."""
        for prompt in prompts:
            for instruction in prompt.instruction_ids:
                if instruction not in self._known:
                    raise ValueError(
                        f"prompt {prompt.key!r}: {self.name} has no checker of {instruction!r} "
                        f"for {self._benchmark}"
                    )

    def check(self, prompt: Prompt, response: str) -> Verdict:
        """Check a response; a checker that raises is told in the verdict's `error`."""
        none = [False] * len(prompt.instruction_ids)
        # Some checkers draw what the prompt left open, and so does the detection of languages.
        random.seed(_SEED)
        self._langdetect.DetectorFactory.seed = _SEED
        sample: Any = self._sample(
            key=prompt.key,
            prompt=prompt.text,
            instruction_id_list=prompt.instruction_ids,
            kwargs=prompt.kwargs,
        )
        try:
            results, _ = self._package.evaluate_output_for_sample(self._benchmark, sample, response)
        except Exception as error:
            reason = " ".join(str(error).split()).strip("* ")[:200]
            return Verdict(none, none, f"{type(error).__name__}: {reason}")
        if not results:  # an empty response
            return Verdict(none, none)
        return Verdict(
            [bool(result.strict_pass) for result in results],
            [bool(result.loose_pass) for result in results],
        )
