"""Conversations to token ids and back: our own byte-level tokenizer, and those of other Hugging Face folders."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from trueline.data.templates import OWN_TEMPLATE, Template, read_template
from trueline.data.tokenizer_files import END_IDS, read_tokenizer, write_tokenizer
from trueline.errors import InputError
from trueline.types import Message, Prompt

__all__ = ["ChatTokenizer"]

PAD, END, SYSTEM, USER, ASSISTANT = SPECIALS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
SMALLEST = 256 + len(SPECIALS)  # every byte has a token, so that any text can be written
PROBE = Prompt((Message("user", "Is the sky blue?"),))
ANSWER = "Yes it is"
TEXTS = "The  cat's 1234 toys\n\n\tdidn't größer 你好 🦊 <|im_end|>; x=f(y[0])"
CONVERSATIONS = (("Why?",), (" two  spaces \n", "Yes.", "\n\nAnd?"), ("Be kind.", "Why?", "So.", "And?"))


class ChatTokenizer:
    """Renders conversations with a chat template and encodes them; text of a user never becomes a special token.

    `pad_id` fills a batch and may equal `end_id` where a folder has no pad: what counts is the mask, never the id.
    `end_id` is what the template writes after an answer; `end_ids` begin with it and hold every other special token
    that the folder's model ends an answer with (Llama-3 has three). `forbidden_ids` are the special tokens that must
    never be sampled: all but `end_ids`. `vocab_size` is the highest id plus one; a model may be padded beyond it.
    """

    def __init__(self, tokenizer: Tokenizer, template: str, config: Mapping[str, Any], *, where: str = "") -> None:
        self._tokenizer, self._config, self._where = tokenizer, dict(config), where
        self._plain = Tokenizer.from_str(tokenizer.to_str())
        self._plain.encode_special_tokens = True  # special tokens are read as the text they are written with
        named = {key: _content(config.get(key)) for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
        self._template = Template(template, {key: text for key, text in named.items() if text}, where)
        self._special = {t.content: i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
        self._guard = re.compile("|".join(map(re.escape, sorted(self._special, key=len, reverse=True))) or "(?!)")
        self.bos_id: int | None = tokenizer.token_to_id(named["bos_token"]) if named["bos_token"] else None
        first = tokenizer.encode("a", add_special_tokens=True).ids[:1]
        self._adds_bos = self.bos_id is not None and first == [self.bos_id]
        self.vocab_size: int = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.end_ids: tuple[int, ...] = self._find_ends(named["eos_token"])
        self.end_id: int = self.end_ids[0]
        self.pad_id: int = self._find_pad(named["pad_token"], named["unk_token"])
        self.forbidden_ids: tuple[int, ...] = tuple(sorted(set(self._special.values()) - set(self.end_ids)))

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int) -> ChatTokenizer:
        """Byte-level BPE on the texts, special tokens at ids 0 to 4; equal texts give equal files.

        The vocabulary is smaller than asked for where the texts have fewer merges to offer.
        """
        if vocab_size < SMALLEST:
            raise InputError(f"{vocab_size} is too small", field="vocab_size", remedy=f"at least {SMALLEST}")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
        )
        with _one_thread():
            tokenizer.train_from_iterator(texts, trainer)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": PAD,
            "eos_token": END,
            "additional_special_tokens": [SYSTEM, USER, ASSISTANT],
            "clean_up_tokenization_spaces": False,
            "add_prefix_space": False,
            "padding_side": "left",
        }
        return cls(tokenizer, OWN_TEMPLATE, config)

    @classmethod
    def load(cls, folder: str | Path, *, template: str = "") -> ChatTokenizer:
        """The tokenizer of a Hugging Face folder: `tokenizer.json`, with its chat template if it has one.

        `template`, a Jinja text or the path of a file of one, goes before the folder's own. Without either (a base
        model) roles are written out in plain text (`templates.PLAIN_TEMPLATE`). Raises `InputError` for a folder
        without these files, a template that fails, or one whose prompt is not a prefix of its prompt with an answer.
        """
        tokenizer, own, config = read_tokenizer(Path(folder))
        return cls(tokenizer, read_template(template) if template else own, config, where=str(folder))

    def save(self, folder: str | Path, *, pad_id: int | None = None) -> None:
        """Writes the files that Hugging Face tools read a fast tokenizer and its chat template from.

        `pad_id` names another padding token there than `self.pad_id`.
        """
        extra = {END_IDS: list(self.end_ids)} if len(self.end_ids) > 1 else {}
        config = {key: value for key, value in self._config.items() if key != END_IDS} | extra
        if pad_id is not None:
            config["pad_token"] = self._tokenizer.id_to_token(pad_id)
        write_tokenizer(Path(folder), self._tokenizer, self._template.source, config)

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of a sha256 that is equal where any conversation gives equal ids.

        Over vocabulary, merges, special tokens and the ids of probes, not over the files: other tools write those anew
        (TRL adds an empty post-processor) and rewrite a template without changing what it renders.
        """
        model = json.loads(self._tokenizer.to_str())["model"]
        described = [
            sorted(self._tokenizer.get_vocab(with_added_tokens=True).items()), model.get("merges"),
            sorted(self._special.items()), self._plain.encode(TEXTS, add_special_tokens=False).ids,
            [self._ids_or_refusal(turns) for turns in CONVERSATIONS],
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]

    def _ids_or_refusal(self, turns: Sequence[str]) -> list[int] | None:
        roles = ("user", "assistant") if len(turns) % 2 else ("system", "user", "assistant", "user")
        messages = [Message(role, text) for role, text in zip(roles * len(turns), turns)]
        try:
            return self._encode(messages, answering=True)
        except InputError:  # a template may refuse a system turn; one that takes it is another
            return None

    def render(self, prompt: Prompt) -> str:
        """The conversation as the template writes it, up to where the assistant is to answer."""
        return self._template.render(prompt.messages, answering=True)

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """The conversation up to where the assistant is to answer, with one BOS if the tokenizer has one."""
        return self._encode(prompt.messages, answering=True)

    def encode_response(self, text: str) -> list[int]:
        """The answer's text and `end_id`; follows the ids of its prompt as they are."""
        return [*self._plain.encode(text, add_special_tokens=False).ids, self.end_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The text before the first of `end_ids`, special tokens left out; bytes that are no UTF-8 become U+FFFD."""
        ids = list(takewhile(lambda i: i not in self.end_ids, map(int, ids)))
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def texts(self, ids: Sequence[int]) -> list[str]:
        """What each token writes, special tokens too; of the tokens that share a character, the last one has it all."""
        found: list[str] = []
        before: list[int] = []  # a decoder may drop the space that a text begins with, so each is read after another
        held: list[int] = []
        for token in map(int, ids):
            held.append(token)
            start = self._tokenizer.decode(before, skip_special_tokens=False)
            text = self._tokenizer.decode(before + held, skip_special_tokens=False)
            text = text[len(start) :] if text.startswith(start) else self._tokenizer.decode(held)
            found.append(text)
            if text.endswith("\ufffd") and len(held) < 4:  # of a character of up to four bytes
                found[-1] = ""
            else:
                before, held = held, []
        if held:
            found[-1] = self._tokenizer.decode(held, skip_special_tokens=False)
        return found

    def _encode(self, messages: Sequence[Message], *, answering: bool) -> list[int]:
        """Special tokens count where the template wrote them; those in a message go out first and come back as text."""
        used = "".join([self._template.source, *(m.content for m in messages)])
        mark = next(c for c in map(chr, range(0xE000, 0xF8FF)) if c not in used)
        held = [found for m in messages for found in self._guard.findall(m.content)]
        guarded = [Message(m.role, self._guard.sub(mark, m.content)) for m in messages]
        pieces = self._template.render(guarded, answering=answering).split(mark)
        if len(pieces) != len(held) + 1:
            reason = "the chat template repeats or drops a message that holds a special token's text"
            raise InputError(reason, where=self._where, field="chat_template", remedy="remove it from the message")
        ids = list(self._tokenizer.encode(pieces[0], add_special_tokens=False).ids)
        for text, piece in zip(held, pieces[1:]):
            ids += self._plain.encode(text, add_special_tokens=False).ids
            ids += self._tokenizer.encode(piece, add_special_tokens=False).ids
        return self._with_one_bos(ids)

    def _with_one_bos(self, ids: list[int]) -> list[int]:
        """Template and tokenizer may both write a BOS, or neither."""
        count = next((i for i, token in enumerate(ids) if token != self.bos_id), len(ids))
        return [self.bos_id, *ids[count:]] if self.bos_id is not None and (count or self._adds_bos) else ids

    def _find_ends(self, eos: str) -> tuple[int, ...]:
        """What the template writes after an answer, else the EOS; then what else the model stops at.

        Refuses a template without prefix. Of the model's ids only special tokens count: a configuration's untouched
        default may name an ordinary word.
        """
        prompt = self._encode(PROBE.messages, answering=True)
        whole = self._encode([*PROBE.messages, Message("assistant", ANSWER)], answering=False)
        if whole[: len(prompt)] != prompt:
            reason = "the ids of a prompt are not a prefix of those with its answer"
            remedy = "give a template that writes an answer where it asks for one"
            raise InputError(reason, where=self._where, field="chat_template", remedy=remedy)
        specials = set(self._special.values())
        written = next((i for i in whole[len(prompt) :] if i in specials), None)
        named = self._tokenizer.token_to_id(eos) if eos else None
        first = [named] if written is None and named is not None else [written] if written is not None else []
        ends = dict.fromkeys(first + [i for i in self._config.get(END_IDS) or () if i in specials])
        if not ends:
            remedy = "set eos_token in tokenizer_config.json"
            raise InputError("no token ends an answer", where=self._where, field="eos_token", remedy=remedy)
        return tuple(ends)

    def _find_pad(self, pad: str, unk: str) -> int:
        named = self._tokenizer.token_to_id(pad) if pad else None
        if named is not None:
            return named
        spare = [i for text, i in self._special.items() if "pad" in text.lower() or text == unk]
        return next((i for i in spare if i not in (self.end_id, self.bos_id)), self.end_id)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Training in one thread, so that ties between merges fall the same way each time."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _content(token: Any) -> str:
    """A token's text; files write it bare or as {"content": ...}."""
    return str(token.get("content") or "") if isinstance(token, Mapping) else str(token or "")
