"""A program as a chat response, and the coarse pieces that a response with a program consists of."""

from __future__ import annotations

import keyword
import re

from trueline.data.code_prompts import extract_code

__all__ = ["fenced", "pieces_of"]

_FENCES = re.compile(r"^ {0,3}(?:`{3,}|~{3,})", re.MULTILINE)
# Texts and comments: words in them are no statements. A text that is never closed ends with its line, or with the code.
_QUIET = re.compile(
    r'"""(?:[^\\]|\\.)*?(?:"""|\Z)|' r"'''(?:[^\\]|\\.)*?(?:'''|\Z)|"
    r'"(?:[^"\\\n]|\\.)*"?|' r"'(?:[^'\\\n]|\\.)*'?|#[^\n]*",
    re.DOTALL,
)  # fmt: skip
_WORD = re.compile(r"\w+")
_STATEMENTS = frozenset(keyword.kwlist) - {"True", "False", "None", "and", "or", "not", "is", "in"}
_INNER = {"for": "comprehension", "if": "condition within", "lambda": "lambda", "yield": "yield", "input": "input",
          "print": "print", "stdin": "stdin", "open": "open", "eval": "eval", "exec": "exec"}  # fmt: skip


def fenced(program: str) -> str:
    """The program in one code block, as the prompts ask for it; `extract_code` takes it out again."""
    longest = max((len(run) for run in re.findall("`+", program)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}python\n{program.strip(chr(10)).rstrip()}\n{fence}"


def pieces_of(response: str, entry: str = "") -> frozenset[str]:
    """The kinds of statements that lines of the response's code begin with, what stands within lines (comprehensions,
    lambdas, input, print, ...), the modules that are imported, and whether the code block is missing or not closed.

    By words, not by a parse: broken programs have pieces too. Names, numbers and the order of lines play no part.
    """
    fences = len(_FENCES.findall(response))
    found = {"no code block"} if not fences else {"unclosed block"} if fences % 2 else set()
    for line in _QUIET.sub(" ", extract_code(response, entry)).splitlines():
        words = _WORD.findall(line)
        first = words[0] if words and line.lstrip().startswith(words[0]) else ""
        if first in _STATEMENTS:
            found.add(f"{first} {words[1]}" if first in ("import", "from") and len(words) > 1 else first)
        found |= {_INNER[word] for word in (words[1:] if first in _STATEMENTS else words) if word in _INNER}
    return frozenset(found)
