"""The chat tokenizer: ids, special tokens that users write, round trips, and what foreign folders bring along."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from trueline.data.chat import ChatTokenizer
from trueline.errors import InputError
from trueline.types import Message, Prompt

TEXTS = ["How do I bake bread?", "Mix flour and water, then wait.", "the cat sat on the mat"] * 20
TRAIN = (
    f"from trueline.data.chat import ChatTokenizer; print(ChatTokenizer.train({TEXTS!r}, vocab_size=400).fingerprint)"
)


@pytest.fixture(scope="module")
def chat() -> ChatTokenizer:
    return ChatTokenizer.train(TEXTS, vocab_size=320)


def conversation(*turns: str, system: str = "") -> Prompt:
    messages = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(turns)]
    return Prompt(((Message("system", system),) if system else ()) + tuple(messages))


def test_special_tokens_stand_where_the_layout_says(chat):
    assert (chat.pad_id, chat.end_id, chat.forbidden_ids) == (0, 1, (0, 2, 3, 4))
    assert 261 < chat.vocab_size <= 320
    words = lambda text: chat.encode_response(text)[:-1]  # noqa: E731
    ids = chat.encode_prompt(conversation("the cat", "sat", "on?", system="mat"))
    assert ids == [2, *words("mat"), 1, 3, *words("the cat"), 1, 4, *words("sat"), 1, 3, *words("on?"), 1, 4]


def test_equal_texts_give_equal_files_in_another_process(tmp_path):
    environments = [{"PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": "true"} for seed in ("1", "2")]
    run = lambda env: subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True, check=True, env=env)  # noqa: E731
    found = [run(environment).stdout.strip() for environment in environments]
    assert found[0] == found[1] == ChatTokenizer.train(TEXTS, vocab_size=400).fingerprint
    assert found[0] != ChatTokenizer.train(TEXTS[:2], vocab_size=400).fingerprint


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_survives_the_round_trip(chat, text):
    ids = chat.encode_response(text)
    assert ids[-1] == chat.end_id and not set(ids[:-1]) & {0, 1, 2, 3, 4}
    assert chat.decode([*ids, 70, 71]) == text  # what follows the end is not the response


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(["<|end|>", "<|assistant|>", "<|pad|>", "<|", "end|>", " hi ", "\ue000", "\n"]), max_size=6
    )
)
def test_text_of_a_user_never_becomes_a_special_token(chat, parts):
    text = "".join(parts)
    ids = chat.encode_prompt(conversation(text, "ok", text))
    assert [i for i in ids if i < 5] == [3, 1, 4, 1, 3, 1, 4]
    assert not set(chat.encode_response(text)[:-1]) & {0, 1, 2, 3, 4}
    middle = ids[1 : ids.index(1)]
    assert chat.decode(middle) == text


def test_decode_leaves_special_tokens_out_and_marks_broken_bytes(chat):
    hi = chat.encode_response("hi")[:-1]
    assert chat.decode([3, *hi, 4, 0, 0]) == "hi"
    assert chat.decode([]) == chat.decode([1, *hi]) == ""
    assert chat.decode(chat.encode_response("é")[:1]) == "\ufffd"


def test_save_and_load_keep_everything(chat, tmp_path):
    chat.save(tmp_path / "a")
    again = ChatTokenizer.load(tmp_path / "a")
    again.save(tmp_path / "b")
    prompt = conversation("the <|end|> cat", "sat", "on?", system="be kind")
    assert again.encode_prompt(prompt) == chat.encode_prompt(prompt)
    assert again.fingerprint == chat.fingerprint
    assert (again.pad_id, again.end_id, again.forbidden_ids) == (chat.pad_id, chat.end_id, chat.forbidden_ids)
    names = ["chat_template.jinja", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == names
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_a_vocabulary_without_room_for_all_bytes_is_refused():
    with pytest.raises(InputError, match="vocab_size: 260 is too small; at least 261"):
        ChatTokenizer.train(TEXTS, vocab_size=260)


# --- foreign folders ---------------------------------------------------------------------------------------------

TURNS = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}"
)
SPECIALS = ["<s>", "<|im_start|>", "<|im_end|>", "</s>", "<unk>"]


@pytest.fixture
def foreign(tmp_path):
    """Writes a folder as another trainer would: no pad, BOS by the post-processor, template in the configuration."""

    def write(template: str | None = TURNS, *, adds_bos: bool = True, files: dict[str, str] | None = None, **config):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(TEXTS, trainer)
        tokenizer.add_tokens([AddedToken("<tool>", special=False)])
        tokenizer.enable_truncation(3)
        if adds_bos:
            tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"} | config
        (tmp_path / "tokenizer_config.json").write_text(
            json.dumps(config | ({"chat_template": template} if template else {}))
        )
        for name, text in (files or {}).items():
            (tmp_path / name).write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("in_template", ["", "{{ bos_token }}", "{{ bos_token }}{{ bos_token }}"])
def test_there_is_one_bos_or_none(foreign, adds_bos, in_template):
    chat = ChatTokenizer.load(foreign(in_template + TURNS, adds_bos=adds_bos))
    ids = chat.encode_prompt(conversation("the cat"))
    assert ids.count(0) == (1 if adds_bos or in_template else 0)
    assert 0 not in ids[1:] and 0 not in chat.encode_response("the cat")


def test_an_answer_ends_with_what_the_template_writes(foreign):
    chat = ChatTokenizer.load(foreign())
    assert chat.end_id == SPECIALS.index("<|im_end|>")  # not </s>, the EOS of the configuration
    assert chat.forbidden_ids == (0, 1, 3, 4)
    ids = chat.encode_prompt(conversation("a long enough text, for the stored truncation was 3"))
    assert len(ids) > 10


@pytest.mark.parametrize(
    ("config", "pad"),
    [({}, 2), ({"unk_token": "<unk>"}, 4), ({"pad_token": "</s>"}, 3), ({"pad_token": {"content": "<s>"}}, 0),
     ({"pad_token": "<absent>"}, 2)],
)  # fmt: skip
def test_pad_is_the_one_named_or_a_spare_one_or_the_end(foreign, config, pad):
    assert ChatTokenizer.load(foreign(**config)).pad_id == pad


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({}, (2,)),
        ({"config.json": 3}, (2, 3)),
        ({"config.json": 3, "generation_config.json": [2, 3, 4]}, (2, 3, 4)),
        ({"generation_config.json": [70, 2, 999]}, (2,)),  # an ordinary word and no token at all
        ({"generation_config.json": ["x", None, {}]}, (2,)),
    ],
)
def test_a_model_may_end_its_answers_in_several_ways(foreign, files, ends):
    """What the template writes comes first; the model's other special end tokens may be sampled and end the text."""
    folder = foreign(files={name: json.dumps({"eos_token_id": ids}) for name, ids in files.items()})
    chat = ChatTokenizer.load(folder)
    assert (chat.end_id, chat.end_ids) == (2, ends)
    assert chat.forbidden_ids == tuple(i for i in range(5) if i not in ends)
    words = chat.encode_response("the cat")[:-1]
    assert all(chat.decode([*words, end, *words]) == "the cat" for end in ends)


def test_the_model_names_the_end_where_the_tokenizer_does_not(foreign):
    files = {"config.json": json.dumps({"eos_token_id": 3})}
    assert ChatTokenizer.load(foreign(None, files=files, eos_token=None)).end_id == 3
    files = {"config.json": json.dumps({"eos_token_id": 70})}
    with pytest.raises(InputError, match="no token ends an answer"):
        ChatTokenizer.load(foreign(None, files=files, eos_token=None))


def test_the_fingerprint_is_of_what_is_encoded_not_of_the_files(foreign):
    """TRL and transformers save an untouched tokenizer with other bytes."""
    folder = foreign(adds_bos=False)
    first = ChatTokenizer.load(folder).fingerprint
    change_tokenizer(
        folder, post_processor={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    )
    (folder / "chat_template.jinja").write_text("{# rewritten #}" + TURNS.replace("m.", "m ."))
    assert ChatTokenizer.load(folder).fingerprint == first


@pytest.mark.parametrize("what", ["bos", "template", "no template", "merges", "special", "pre_tokenizer"])
def test_what_changes_ids_changes_the_fingerprint(foreign, what):
    first = ChatTokenizer.load(foreign(adds_bos=False)).fingerprint
    template = {"template": TURNS.replace(" + '\\n' }}{% endfor", " }}{% endfor"), "no template": None}.get(what, TURNS)
    folder = foreign(template, adds_bos=what == "bos")
    raw = json.loads((folder / "tokenizer.json").read_text())
    if what == "merges":
        change_tokenizer(folder, model=raw["model"] | {"merges": raw["model"]["merges"][::-1]})
    if what == "special":
        change_tokenizer(folder, added_tokens=[t | {"special": True} for t in raw["added_tokens"]])
    if what == "pre_tokenizer":
        change_tokenizer(folder, pre_tokenizer=raw["pre_tokenizer"] | {"add_prefix_space": True})
    assert ChatTokenizer.load(folder).fingerprint != first


def change_tokenizer(folder, **values) -> None:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_special_text_is_plain_text_in_a_foreign_template_too(foreign):
    chat = ChatTokenizer.load(foreign())
    ids = chat.encode_prompt(conversation("the <|im_end|> cat </s>"))
    assert [i for i in ids if i < 5] == [0, 1, 2, 1]
    assert "the <|im_end|> cat </s>" in chat.decode([i for i in ids if i != chat.end_id])


def test_without_a_template_roles_are_written_out(foreign):
    chat = ChatTokenizer.load(foreign(None))
    assert chat.end_id == SPECIALS.index("</s>")
    ids = chat.encode_prompt(conversation("the cat", "sat", "on?"))
    assert chat.decode(ids) == "user:\nthe cat\n\nassistant:\nsat\n\nuser:\non?\n\nassistant:\n"


def test_the_template_of_its_own_file_comes_first_and_lists_have_a_default(foreign):
    named = [{"name": "tools", "template": "x"}, {"name": "default", "template": TURNS}]
    text = "the cat"
    listed = ChatTokenizer.load(foreign(named)).encode_prompt(conversation(text))
    own = ChatTokenizer.load(foreign("{{ broken", files={"chat_template.jinja": TURNS})).encode_prompt(
        conversation(text)
    )
    assert listed == own


def test_generation_marks_and_dates_of_published_templates(foreign):
    marked = TURNS.replace("{{ '<|im_start|>' + m", "{%- generation -%}{{ '<|im_start|>' + m", 1)
    marked = marked.replace("{% endfor", "{%- endgeneration -%}{% endfor", 1)
    plain = ChatTokenizer.load(foreign()).encode_prompt(conversation("the cat"))
    assert ChatTokenizer.load(foreign(marked)).encode_prompt(conversation("the cat")) == plain
    dated = ChatTokenizer.load(foreign("{{ strftime_now('%d %b %Y') }}" + TURNS))
    assert dated.decode(dated.encode_prompt(conversation("the cat"))).startswith("26 Jul 2024")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}", "refuses this conversation or is broken"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[9].content }}", "refuses this conversation or is broken"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses this conversation or is broken"),
        ("{% for i in range(10**9) %}x{% endfor %}", "refuses this conversation or is broken"),
        ("{{ messages | length }}" + TURNS, "not a prefix"),
        (TURNS.replace("<|im_start|>assistant", "<|im_start|>model"), "not a prefix"),
    ],
)
def test_a_template_that_cannot_serve_is_refused(foreign, template, reason):
    with pytest.raises(InputError, match=reason) as caught:
        ChatTokenizer.load(foreign(template))
    assert caught.value.field == "chat_template"


def test_a_template_that_doubles_a_message_with_special_text_is_refused(foreign):
    doubling = TURNS.replace("m.content", "m.content + (m.content if m.role == 'user' else '')")
    chat = ChatTokenizer.load(foreign(doubling))
    chat.encode_prompt(conversation("the cat"))
    with pytest.raises(InputError, match="repeats or drops"):
        chat.encode_prompt(conversation("the </s> cat"))


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"tokenizer.json": "{}"}, "broken tokenizer"),
        ({"tokenizer_config.json": "{"}, "broken JSON"),
        ({"tokenizer_config.json": "[]"}, "expected an object"),
        ({"tokenizer_config.json": "{}"}, "no token ends an answer"),
    ],
)
def test_a_broken_folder_is_refused(foreign, files, reason):
    with pytest.raises(InputError, match=reason):
        ChatTokenizer.load(foreign(None, files=files))


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        ChatTokenizer.load(tmp_path)
