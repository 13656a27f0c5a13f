"""transformers reads what `ChatTokenizer.save` writes, and gives the same ids."""

from __future__ import annotations

import pytest

from trueline.data.chat import ChatTokenizer
from trueline.types import Message, Prompt


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    from transformers import AutoTokenizer

    chat = ChatTokenizer.train(["How do I bake bread?", "Mix flour and water, then wait."] * 20, vocab_size=320)
    folder = tmp_path_factory.mktemp("tokenizer")
    chat.save(folder)
    return chat, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "turns",
    [
        [("user", "How do I bake?")],
        [("system", "Be kind."), ("user", " two  spaces \n"), ("assistant", "größer 🦊"), ("user", "\n\nWhy?")],
    ],
)
def test_the_template_gives_equal_ids(pair, turns):
    chat, theirs = pair
    messages = [{"role": role, "content": text} for role, text in turns]
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == chat.encode_prompt(Prompt(tuple(Message(role, text) for role, text in turns)))


def test_an_answered_conversation_is_prompt_and_response(pair):
    chat, theirs = pair
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Mix it."}]
    ids = theirs.apply_chat_template(messages, return_dict=False)
    assert ids == chat.encode_prompt(Prompt.ask("Why?")) + chat.encode_response("Mix it.")


def test_special_ids_and_sizes_agree(pair):
    chat, theirs = pair
    assert (theirs.pad_token_id, theirs.eos_token_id, len(theirs)) == (chat.pad_id, chat.end_id, chat.vocab_size)
    assert set(theirs.all_special_ids) == {chat.end_id, *chat.forbidden_ids}
    ids = chat.encode_response("größer <|end|> 🦊")
    assert theirs.decode(ids, skip_special_tokens=True) == chat.decode(ids)
