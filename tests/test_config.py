"""Strict configuration: what is read, what is refused, and where each error points."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from trueline.config import Section, Setting, ablatable, describe, digest, load, off_value, to_plain
from trueline.errors import InputError


class Ppo(Section):
    kl_coef: float = Field(0.1, ge=0, description="KL weight", json_schema_extra={"off": 0.0})
    clip_range: float = Field(0.2, gt=0, lt=1)
    batch_size: int = Field(512, ge=1)
    value_norm: bool = Field(True, json_schema_extra={"off": False})
    advantage_norm: Literal["batch", "off"] = "batch"
    target_kl: float | None = None


class Study(Section):
    arms: tuple[Literal["sft", "dpo", "ppo"], ...] = ("sft",)
    seeds: tuple[int, ...] = (0,)
    scales: list[float] = []

    @pydantic.model_validator(mode="after")
    def _seeds_differ(self):
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds repeat")
        return self


class Data(Section):
    path: str | tuple[str, ...] | None = None
    folder: Path = Path("runs")
    name: str = "x"


class Model(Section):
    path: str


SECTIONS = {"ppo": Ppo, "study": Study, "data": Data}
TOP = {"task": str, "seed": int}


def given_by(*overrides: str, sections=SECTIONS):
    return load(sections, overrides=overrides, top=TOP)


@pytest.fixture
def written(tmp_path):
    def write(text: str | bytes, name: str = "run.yaml"):
        file = tmp_path / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write


def test_defaults_stand_where_nothing_is_given():
    assert load(SECTIONS) == {"ppo": Ppo(), "study": Study(), "data": Data()}


def test_the_file_is_laid_over_the_defaults_and_overrides_over_the_file(written):
    yaml = written("task: dialogue\nppo:\n  kl_coef: 0.3\n  batch_size: 8\nstudy:\n  seeds: [1, 2]\ndata:\n")
    toml = written('task = "dialogue"\n[ppo]\nkl_coef = 0.3\nbatch_size = 8\n[study]\nseeds = [1, 2]\n', "run.toml")
    for file in (yaml, toml):
        found = load(SECTIONS, file=file, overrides=["ppo.kl_coef=0.05", "seed=7"], top=TOP)
        assert found["ppo"] == Ppo(kl_coef=0.05, batch_size=8)
        assert found["ppo"].model_fields_set == {"kl_coef", "batch_size"}
        assert (found["study"].seeds, found["task"], found["seed"]) == ((1, 2), "dialogue", 7)
    assert "seed" not in load(SECTIONS, file=yaml, top=TOP)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("ppo.kl_coef=1e-4", 1e-4),  # YAML 1.1 alone would read a text
        ("ppo.kl_coef=2", 2.0),
        ("ppo.value_norm=false", False),
        ("ppo.value_norm=off", False),
        ("ppo.advantage_norm=off", "off"),
        ("ppo.target_kl=null", None),
        ("ppo.target_kl=0.5", 0.5),
        ("study.arms=dpo,ppo", ("dpo", "ppo")),
        ("study.arms=ppo", ("ppo",)),
        ("study.arms=[dpo, ppo]", ("dpo", "ppo")),
        ("study.seeds=0,1,2", (0, 1, 2)),
        ("study.seeds=3", (3,)),
        ("study.scales=1e-3, 2", [1e-3, 2.0]),
        ("data.path=a/*.jsonl.gz", "a/*.jsonl.gz"),
        ("data.path='a/*.jsonl.gz'", "a/*.jsonl.gz"),
        ("data.path=*.jsonl", "*.jsonl"),  # a YAML alias otherwise
        ("data.path=a.jsonl,b.jsonl", ("a.jsonl", "b.jsonl")),
        ("data.path='a,b.jsonl'", "a,b.jsonl"),
        ("data.path=[a.jsonl, b.jsonl]", ("a.jsonl", "b.jsonl")),
        ("data.path=x=y.jsonl", "x=y.jsonl"),
        ("data.path=null", None),
        ("data.folder=007", Path("007")),
        ("data.name=1e3", "1e3"),
        ("data.name=yes", "yes"),
        ("data.name=''", ""),
        ("data.name=!!python/name:os.system", "!!python/name:os.system"),  # text, never a tag
    ],
)
def test_an_override_is_read_by_its_fields_type(override, value):
    section, key = override.partition("=")[0].split(".")
    assert getattr(given_by(override)[section], key) == value


def test_the_last_of_two_overrides_wins():
    assert given_by("ppo.kl_coef=1", "ppo.kl_coef=2")["ppo"].kl_coef == 2


BAD_OVERRIDES = [
    ("ppo.kl_coff=0.05", "ppo.kl_coff", "unknown key; did you mean ppo.kl_coef?"),
    ("kl_coef=0.05", "kl_coef", "unknown key; did you mean ppo.kl_coef?"),
    ("pppo.kl_coef=0.05", "pppo.kl_coef", "unknown section 'pppo'; did you mean ppo.kl_coef?"),
    ("dpo.kl_coef=0.05", "dpo.kl_coef", "unknown section 'dpo'; did you mean ppo.kl_coef?"),
    ("studdy.arms=dpo", "studdy.arms", "did you mean study.arms?"),
    ("tsk=dialogue", "tsk", "did you mean task?"),
    ("zzz.qqq=1", "zzz.qqq", "unknown section 'zzz'; known: ppo, study, data, task, seed"),
    ("ppo.zzzzz=1", "ppo.zzzzz", "unknown key; known: ppo.kl_coef, ppo.clip_range"),
    ("ppo=1", "ppo", "is a section, not a key; its keys: ppo.kl_coef"),
    ("ppo.kl_coef", "", "cannot read 'ppo.kl_coef'; write key=value"),
    ("=3", "", "cannot read '=3'"),
    ("", "", "cannot read ''"),
    ("ppo.kl_coef=", "ppo.kl_coef", "no value after ="),
    ("ppo.kl_coef=high", "ppo.kl_coef", "expected a number >= 0, got 'high'"),
    ("ppo.kl_coef=true", "ppo.kl_coef", "expected a number, got True"),
    ("ppo.kl_coef=-1", "ppo.kl_coef", "expected a number >= 0, got -1"),
    ("ppo.kl_coef=nan", "ppo.kl_coef", "expected a number >= 0"),
    ("ppo.kl_coef=.inf", "ppo.kl_coef", "expected a number >= 0, got inf"),
    ("ppo.kl_coef=[", "ppo.kl_coef", "cannot read '['; expected a number"),
    ("ppo.kl_coef=!!python/name:os.system", "ppo.kl_coef", "cannot read"),
    ("ppo.clip_range=1", "ppo.clip_range", "expected a number > 0 and < 1, got 1"),
    ("ppo.batch_size=1.5", "ppo.batch_size", "expected an integer >= 1, got 1.5"),
    ("ppo.batch_size=yes", "ppo.batch_size", "expected an integer, got True"),
    ("ppo.value_norm=2", "ppo.value_norm", "expected true or false, got 2"),
    ("ppo.advantage_norm=bach", "ppo.advantage_norm", "expected one of batch, off, got 'bach'; did you mean batch?"),
    ("ppo.target_kl=x", "ppo.target_kl", "expected a number or null, got 'x'"),
    ("study.arms=dpo,pppo", "study.arms", "a list of one of sft, dpo, ppo, got 'pppo'; did you mean ppo?"),
    ("study.seeds=0,x", "study.seeds", "expected a list of an integer, got 'x'"),
    ("study.seeds=1,1", "study", "seeds repeat"),
    ("seed=x", "seed", "expected an integer, got 'x'"),
]


@pytest.mark.parametrize(("override", "field", "text"), BAD_OVERRIDES)
def test_a_bad_override_is_refused(override, field, text):
    with pytest.raises(InputError) as caught:
        given_by(override)
    assert (caught.value.where, caught.value.field) == ("command line", field)
    assert text in str(caught.value)


BAD_FILES = [
    ("ppo:\n  kl_coef: 0.1\n  kl_coff: 0.1\n", "run.yaml", ":3", "ppo.kl_coff", "did you mean ppo.kl_coef?"),
    ("a: 1\n", "run.yaml", ":1", "a", "unknown key"),
    ("\nppo:\n  kl_coef: high\n", "run.yaml", ":3", "ppo.kl_coef", "expected a number >= 0, got 'high'"),
    ("ppo:\n  kl_coef: {a: 1}\n", "run.yaml", ":2", "ppo.kl_coef", "expected a number"),
    ("ppo:\n  advantage_norm: off\n", "run.yaml", ":2", "ppo.advantage_norm", "quote the word"),
    ("ppo:\n  kl_coef: 1\n  kl_coef: 2\n", "run.yaml", ":3", "ppo.kl_coef", "repeated key"),
    ("ppo.kl_coef: 1\nppo:\n  kl_coef: 2\n", "run.yaml", ":3", "ppo.kl_coef", "repeated key"),
    ("ppo: {}\nppo: {}\n", "run.yaml", ":2", "ppo", "repeated key"),
    ("ppo: 3\n", "run.yaml", ":1", "ppo", "is a section, not a key"),
    ("- ppo\n", "run.yaml", ":1", "", "expected `section:`"),
    ("text\n", "run.yaml", ":1", "", "expected `section:`"),
    ("ppo:\n  ? [a]\n  : 1\n", "run.yaml", ":2", "ppo", "a key must be a name"),
    ("ppo:\n  kl_coef: [1\n", "run.yaml", ":3", "", "broken YAML"),
    ("ppo:\n\tkl_coef: 1\n", "run.yaml", ":2", "", "broken YAML"),
    ("data:\n  name: &a [*a]\n", "run.yaml", ":2", "", "broken YAML"),
    ("a: 1\n---\nb: 2\n", "run.yaml", ":2", "", "broken YAML"),
    ("data:\n  name: !!python/object/apply:os.system [ls]\n", "run.yaml", ":2", "", "tag refused"),
    ("data:\n  name: !mine x\n", "run.yaml", ":2", "", "tag refused: '!mine'"),
    ("data:\n  name: 2024-13-01\n", "run.yaml", "", "", "broken YAML"),
    ("data:\n  name: \0\n", "run.yaml", "", "", "broken YAML"),
    ("data: " + "[" * 1500, "run.yaml", "", "", "broken YAML"),
    (b"ppo:\n  # \xff\n", "run.yaml", ":2", "", "not UTF-8 at byte 9"),
    ("[ppo]\nkl_coef = \n", "run.toml", "", "", "broken TOML"),
    ("[ppo]\nkl_coef = 1\nkl_coef = 2\n", "run.toml", "", "", "broken TOML"),
    ("[ppo]\nkl_coff = 1\n", "run.toml", "", "ppo.kl_coff", "did you mean ppo.kl_coef?"),
    ("[ppo]\nkl_coef = -1\n", "run.toml", "", "ppo.kl_coef", "expected a number >= 0"),
    ("{}", "run.json", "", "", "unknown kind of file '.json'"),
]


@pytest.mark.parametrize(("text", "name", "line", "field", "reason"), BAD_FILES)
def test_a_bad_file_is_refused_at_its_line(written, text, name, line, field, reason):
    file = written(text, name)
    with pytest.raises(InputError) as caught:
        load(SECTIONS, file=file)
    assert (caught.value.where, caught.value.field) == (f"{file}{line}", field)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_files_that_cannot_be_opened(tmp_path):
    (tmp_path / "d.yaml").mkdir()
    for name, reason in [("none.yaml", "file not found"), ("d.yaml", "is a directory")]:
        with pytest.raises(InputError, match=reason):
            load(SECTIONS, file=tmp_path / name)


def test_an_empty_file_and_a_byte_order_mark_are_fine(written):
    for text in ("", "# nothing\n", "\ufeffppo:\n", "ppo: {}\n"):
        assert load(SECTIONS, file=written(text))["ppo"] == Ppo()


def test_a_required_key_that_is_missing_is_named(written):
    with pytest.raises(InputError, match=r"^command line: model\.path: required, not given; add model\.path=\.\.\.$"):
        load({"model": Model})
    file = written("model:\n")
    with pytest.raises(InputError) as caught:
        load({"model": Model}, file=file)
    assert caught.value.where == str(file)


def test_top_keys_are_unknown_unless_allowed():
    with pytest.raises(InputError, match="task: unknown key"):
        load(SECTIONS, overrides=["task=dialogue"])


def test_sections_are_frozen_and_closed():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        Ppo().kl_coef = 1.0
    with pytest.raises(pydantic.ValidationError, match="extra"):
        Ppo(other=1)


def test_describe_lists_keys_with_types_ranges_defaults_and_docs():
    rows = describe(Ppo)
    assert rows[0] == Setting("kl_coef", "a number >= 0", 0.1, "KL weight")
    assert rows[1].type == "a number > 0 and < 1"
    assert [row.key for row in rows] == list(Ppo.model_fields)
    assert describe(Model)[0].default is ...


def test_off_values_belong_to_the_keys_that_declare_them():
    assert ablatable(Ppo) == ["kl_coef", "value_norm"]
    assert (off_value(Ppo, "kl_coef"), off_value(Ppo, "value_norm")) == (0.0, False)
    for key in ("clip_range", "absent"):
        with pytest.raises(InputError, match=r"has no off value; keys that do: kl_coef, value_norm"):
            off_value(Ppo, key)


def test_to_plain_round_trips_through_a_file(written):
    import yaml

    found = given_by("study.seeds=4,5", "data.folder=out", "task=dialogue", "ppo.kl_coef=0.25")
    plain = to_plain(found)
    assert plain["study"]["seeds"] == [4, 5] and plain["data"]["folder"] == "out" and plain["task"] == "dialogue"
    assert load(SECTIONS, file=written(yaml.safe_dump(plain)), top=TOP) == found


def test_a_digest_never_changes():
    # printf '{"a":[1,0.1,"\\u00e4"],"b":null}' | sha256sum
    assert digest({"b": None, "a": (1, 0.1, "ä")}) == "35ed884ebbe932d5"
    assert digest({"ppo": Ppo()}) == digest(to_plain({"ppo": Ppo()}))
    assert digest({"a": 1}) != digest({"a": 1.0}) != digest({"a": 1.5})
    for value in (float("nan"), {"a": object()}):
        with pytest.raises((ValueError, TypeError)):
            digest(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), json_values, max_size=4))
def test_a_digest_knows_no_order_of_keys(value):
    assert digest(value) == digest(dict(reversed(value.items())))


override_text = st.text(st.characters(codec="utf-8"), max_size=15)


@given(st.sampled_from(["ppo.kl_coef", "study.arms", "study.seeds", "data.path", "data.name", "seed"]), override_text)
def test_no_override_escapes_as_another_exception(key, text):
    try:
        given_by(f"{key}={text}")
    except InputError as error:
        assert error.where == "command line"


def test_config_is_light():
    code = "import sys, trueline.config; print({'torch', 'numpy', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
