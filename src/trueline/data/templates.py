"""Chat templates: Jinja in a sandbox, as Hugging Face folders carry them, and our own two."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trueline.errors import InputError
from trueline.types import Message

__all__ = ["OWN_TEMPLATE", "PLAIN_TEMPLATE", "Template", "read_template"]

OWN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)

# For a folder without a template (a base model). The answer begins on its own line: a space left at the end of the
# prompt would split the answer's first word from the space that its token carries.
PLAIN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ message['role'] + ':\\n' + message['content'] }}"
    "{%- if not loop.last or add_generation_prompt -%}{{ '\\n\\n' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'assistant:\\n' }}{%- endif -%}"
)

DATE = datetime.date(2024, 7, 26)  # what published templates write where they are given no date
GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


class Template:
    """A compiled chat template; `variables` are the token texts it may write (`bos_token`, `eos_token`, ...)."""

    def __init__(self, source: str, variables: Mapping[str, str], where: str = "") -> None:
        import jinja2
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self.source, self._variables, self._where = source, dict(variables), where
        self._error = jinja2.TemplateError
        # The settings of transformers, but for `strftime_now`: today's date in a prompt would change it every day.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": self._raise, "strftime_now": DATE.strftime}
        try:
            self._compiled = environment.from_string(GENERATION.sub(_as_condition, source))
        except jinja2.TemplateError as error:
            raise self._refuse(error) from None

    def render(self, messages: Sequence[Message], *, answering: bool) -> str:
        """The conversation as text; `answering` opens the assistant's next turn. Raises `InputError` if it fails."""
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            return self._compiled.render(
                messages=turns, add_generation_prompt=answering, tools=None, documents=None, **self._variables
            )
        except (self._error, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise self._refuse(error) from None

    def _raise(self, message: str) -> None:
        raise self._error(message)

    def _refuse(self, error: Exception) -> InputError:
        reason = f"the chat template refuses this conversation or is broken: {error}"
        return InputError(reason, where=self._where, field="chat_template")


def read_template(given: str) -> str:
    """A template as it stands, or that of the file that `given` names; Jinja marks tell them apart."""
    if "{{" in given or "{%" in given:
        return given
    path = Path(given)
    if not path.is_file():
        raise InputError(
            "neither a Jinja template nor a file",
            where="settings",
            field="model.chat_template",
            remedy="give a file that exists, or a template with {{ ... }}",
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 ({error.reason} at byte {error.start})", where=given, field="model.chat_template",
                         remedy="save it as UTF-8") from None  # fmt: skip


def _as_condition(found: re.Match[str]) -> str:
    """`{% generation %}` only marks the assistant's text for training in transformers; here it changes nothing."""
    before, end, after = found.groups()
    return f"{{%{before} {'endif' if end else 'if true'} {after}%}}"


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
