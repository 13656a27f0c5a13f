"""The public interface: the names users may rely on, sorted, each of them there, and a light import."""

from __future__ import annotations

import subprocess
import sys

import trueline

NAMES = """
ChatTokenizer Decoder Demonstration InputError Judgement LearnedReward Message NativeEngine Pair Prompt Rollout Sampling
Task TruelineError __version__ build_report check_data load_decoder load_pairs load_scalar response_logprobs run_stage
run_study save_model settings
""".split()


def test_the_public_names_are_exactly_these():
    assert sorted(trueline.__all__) == sorted(NAMES)


def test_every_public_name_resolves_and_is_documented():
    for name in trueline.__all__:
        found = getattr(trueline, name)
        assert name == "__version__" or found.__doc__, name


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, trueline; print([m for m in ('torch', 'transformers', 'numpy', 'pydantic') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
