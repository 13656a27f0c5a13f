"""The files that a Hugging Face folder keeps its tokenizer in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from trueline.data.templates import PLAIN_TEMPLATE
from trueline.errors import InputError

__all__ = ["END_IDS", "read_tokenizer", "write_tokenizer"]

END_IDS = "end_token_ids"
"""Key of our own in `tokenizer_config.json`, where a model ends its answers with several tokens."""


def read_tokenizer(folder: Path) -> tuple[Tokenizer, str, dict[str, Any]]:
    """Tokenizer, chat template and configuration; `PLAIN_TEMPLATE` where the folder has none (a base model).

    The ids that end an answer are those of `generation_config.json`, as in transformers, else of `config.json`.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        remedy = "write one with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        raise InputError("no tokenizer.json", where=str(folder), remedy=remedy)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises no narrower class
        remedy = "save the tokenizer there again: save_pretrained(folder)"
        raise InputError(f"broken tokenizer ({str(error)[:200]})", where=str(file), remedy=remedy) from None
    tokenizer.no_padding()
    tokenizer.no_truncation()  # a length set by whoever saved it must not cut our prompts
    config = _read_json(folder / "special_tokens_map.json") | _read_json(folder / "tokenizer_config.json")
    generation, model = _read_json(folder / "generation_config.json"), _read_json(folder / "config.json")
    named = [found for found in (generation.get("eos_token_id"), model.get("eos_token_id")) if found is not None]
    if named:
        ids = named[0] if isinstance(named[0], list) else [named[0]]
        config[END_IDS] = [i for i in ids if isinstance(i, int)]
    return tokenizer, _read_template(folder, config), config


def write_tokenizer(folder: Path, tokenizer: Tokenizer, template: str, config: Mapping[str, Any]) -> None:
    """The files that Hugging Face tools read a fast tokenizer and its chat template from."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in config.items() if key != "chat_template"}
    named = {key: value for key, value in config.items() if key.endswith("_token") or key.endswith("_special_tokens")}
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", {k: v for k, v in named.items() if not isinstance(v, bool)})
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"broken JSON ({error})", where=str(file)) from None
    if not isinstance(found, dict):
        raise InputError("expected an object", where=str(file))
    return found


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def _read_template(folder: Path, config: Mapping[str, Any]) -> str:
    """`chat_template.jinja`, else `chat_template` of the configuration (a text, or a list with one named "default")."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        found = next((t.get("template") for t in found if isinstance(t, dict) and t.get("name") == "default"), None)
    return found if isinstance(found, str) and found else PLAIN_TEMPLATE
