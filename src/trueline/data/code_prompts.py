"""Problems as prompts, responses as programs: templates by format, and how code is taken out of what a model says."""

from __future__ import annotations

import re

from trueline.data.code_files import Sample
from trueline.data.code_formats import Problem
from trueline.types import AssertTest, CallTest, Prompt, StdioTest, Test

__all__ = ["STOPS", "extract_code", "program_of", "prompt_of", "stop_completion"]

STOPS = ("\nclass ", "\ndef ", "\n#", "\n@", "\nif ", "\nprint(", "\n```")
"""What ends a function that a base model goes on writing: those of Chen et al. 2021, decorators and fences."""

_FENCE = re.compile(r"^[ ]{0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^\n`]*\n(.*?)(?:^[ ]{0,3}\1[`~]*[ \t]*$|\Z)", re.M | re.S)
_MARKED = re.compile(r"\[BEGIN\]\n?(.*?)(?:\[DONE\]|\Z)", re.DOTALL)
_PYTHON = ("", "python", "py", "python3", "py3")


def prompt_of(problem: Problem, *, chat: bool = True) -> Prompt:
    """What a model is asked: one user turn; `kind` is the problem's tier, `meta` holds its task id.

    `chat=False` is the text that a base model completes: HumanEval's own prompt, MBPP's with its first test, APPS' with
    "ANSWER:" at the end (Hendrycks et al. 2021). The hidden tests are never in it.
    """
    text = _chat(problem) if chat else _completed(problem)
    return Prompt.ask(text, problem.tier, {"task_id": problem.task_id})


def program_of(problem: Problem, sample: Sample) -> str:
    """The source of a sample: what is judged, with the problem's prelude beside it.

    A completion is appended to the starter where the problem's completions continue it. A response's code is taken out
    first (`extract_code`) and continues the starter too, unless it defines the entry itself.
    """
    if sample.kind == "solution":
        return sample.text
    text = extract_code(sample.text, problem.entry) if sample.kind == "response" else sample.text
    whole = sample.kind == "response" and _defines(text, problem.entry)
    return text if whole or not problem.continues else problem.starter + text


def extract_code(response: str, entry: str = "") -> str:
    """The code in a response.

    Of its fenced blocks that are marked as Python, or as nothing, the last one that defines `entry`, else the last one;
    a block that is not closed goes on to the end. Without such a block: what stands between [BEGIN] and [DONE], else
    the response as it is.
    """
    blocks = [body for _, language, body in _FENCE.findall(response) if language.lower() in _PYTHON]
    if blocks:
        return next((body for body in reversed(blocks) if _defines(body, entry)), blocks[-1])
    marked = _MARKED.search(response)
    return marked.group(1) if marked else response


def stop_completion(text: str) -> str:
    """A base model's completion up to the first of `STOPS`: what follows is no longer the function's body."""
    ends = [at for at in (text.find(stop) for stop in STOPS) if at >= 0]
    return text[: min(ends)] if ends else text


def _defines(code: str, entry: str) -> bool:
    return bool(entry) and re.search(rf"^[ \t]*(?:async )?def {re.escape(entry)}\b", code, re.MULTILINE) is not None


def _chat(problem: Problem) -> str:
    if problem.format == "code-world":
        return problem.prompt
    if problem.continues:
        return (
            "Complete this Python function. Answer with the whole function in one code block.\n\n"
            f"```python\n{problem.starter.rstrip()}\n```"
        )
    parts = [problem.prompt.strip()]
    if problem.starter:
        parts.append(f"Begin with this code:\n\n```python\n{problem.starter.rstrip()}\n```")
    if any(isinstance(test, StdioTest) for test in problem.tests):
        parts.append("Write a Python 3 program that reads standard input and writes standard output.")
    elif problem.entry:
        parts.append(f"Write a Python 3 function named `{problem.entry}`.")
    parts += _examples(problem)
    parts.append("Answer with the whole program in one code block.")
    return "\n\n".join(parts)


def _completed(problem: Problem) -> str:
    if problem.continues or problem.format == "code-world":
        return problem.starter or problem.prompt
    if problem.format == "apps":
        use = "Use Call-Based format" if problem.entry else "Use Standard Input format"
        starter = f"\n{problem.starter}" if problem.starter else ""
        return f"\nQUESTION:\n{problem.prompt}{starter}\n{use}\n\nANSWER:\n"
    examples = "\n".join(_examples(problem))
    return f'"""\n{problem.prompt.strip()}\n{examples}\n"""\n'


def _examples(problem: Problem) -> list[str]:
    """Public tests that the statement does not show itself: contest statements hold theirs."""
    if problem.format not in ("mbpp", "problems") or not problem.public_tests:
        return []
    return ["Examples:\n\n" + "\n".join(_shown(test) for test in problem.public_tests)]


def _shown(test: Test) -> str:
    if isinstance(test, AssertTest):
        return test.code
    if isinstance(test, CallTest):
        return f"assert {test.function}({', '.join(map(repr, test.args))}) == {test.expected!r}"
    return f"Input:\n{test.stdin.rstrip()}\nOutput:\n{test.expected.rstrip()}"
