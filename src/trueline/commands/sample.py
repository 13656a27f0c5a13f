"""`trueline sample FOLDER PROMPT`: responses of a Hugging Face folder, trained here or elsewhere."""

from __future__ import annotations

from pathlib import Path

from trueline.data.chat import ChatTokenizer
from trueline.errors import InputError
from trueline.models.checkpoints import load_decoder
from trueline.models.decoder import Decoder
from trueline.models.scoring import Sampling, forbidden_mask
from trueline.rollout.native import NativeEngine
from trueline.seeds import uniforms
from trueline.types import Prompt

__all__ = ["sample_folder"]


def sample_folder(folder: Path, text: str, *, n: int, seed: int, max_new_tokens: int, greedy: bool) -> list[str]:
    """`n` responses of the checkpoint in `folder` (or of a run's cell) to one user turn."""
    policy, tokenizer = _load(folder)
    ids = tokenizer.encode_prompt(Prompt.ask(text))
    room = policy.config.max_positions - len(ids)
    if room < 1:
        raise InputError(
            f"the prompt is {len(ids)} tokens, the context {policy.config.max_positions}",
            where="command line",
            field="prompt",
            remedy="shorten it",
        )
    limit = min(room, max_new_tokens)
    engine = NativeEngine(pad_id=tokenizer.pad_id, end_id=tokenizer.end_ids)
    engine.load_weights(policy, 0)
    count = 1 if greedy else n
    draws = None if greedy else uniforms(seed, "sample", 0, range(count), limit)
    sampling = Sampling(forbidden=forbidden_mask(tokenizer.vocab_size, tokenizer.forbidden_ids))
    rollout = engine.generate([ids] * count, draws, max_new_tokens=limit, sampling=sampling)
    return [tokenizer.decode(response) for response in rollout.responses()]


def _load(folder: Path) -> tuple[Decoder, ChatTokenizer]:
    inner = folder / "model" if (folder / "model").is_dir() else folder
    if not inner.is_dir():
        raise InputError("no such folder", where=str(folder), remedy="give a Hugging Face folder or a cell of a run")
    return load_decoder(inner), ChatTokenizer.load(inner)
