"""Sampling at a vLLM server: weights go over as files, every hand-over is proved by log-probs, draws belong to rows.

A row's seed is made of its uniforms, so that a sample hangs neither on the batch nor on who asks; the draws themselves
are the server's, and are others than the native engine's.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trueline.errors import InputError, NumericsError
from trueline.models.checkpoints import save_model
from trueline.models.decoder import Decoder
from trueline.models.scoring import Sampling, response_logprobs
from trueline.rollout.engine import Rollout, pad_prompts
from trueline.rollout.vllm_client import Drawn, VllmServer

__all__ = ["FAR", "Proof", "VllmEngine"]

_PROBES, _PROBE_TOKENS = 4, 24
FAR = 0.1
"""Mean nats per token between server and trainer above which the server holds other weights: bf16 against fp32 on
texts of random tokens, where log-probs are largest, is a tenth of that."""


@dataclass(frozen=True)
class Proof:
    """What the server says of fixed rows after it took weights, against the trainer.

    `gap` and `largest`: mean and largest |difference| of the log-probs, in nats. `moved`: mean |difference| of the
    trainer's own log-probs from those of the weights before (0 at the first). `nearer`: whether the server is nearer to
    the new weights than to those before.
    """

    version: int
    gap: float
    largest: float
    moved: float
    nearer: bool


class VllmEngine:
    """An engine of the same verbs as the native one. `load_weights` hands over and proves.

    `folder` is a directory that the server sees under the same name (a temporary one where there is none); with
    `sleeps` the server gives the accelerator's memory back whenever it is not sampling.
    """

    def __init__(
        self, server: VllmServer, *, pad_id: int, end_id: int | Sequence[int], folder: str = "", sleeps: bool = False
    ) -> None:
        self.server, self.pad_id, self.sleeps = server, pad_id, sleeps
        self.end_ids = (end_id,) if isinstance(end_id, int) else tuple(end_id)
        self.version = -1
        self.proof: Proof | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="trueline-weights-", dir=folder or _fast_folder()))
        self._drop_folder = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._before: tuple[Tensor, float] | None = None
        self._vocabulary = 0
        self._device = torch.device("cpu")
        self._asleep = False

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop_folder()
        try:
            self._wake()
        finally:
            self.server.close()

    def load_weights(self, policy: Decoder, version: int) -> None:
        """Write the weights, let the server read them, and hold what it then says against the policy.

        Raises NumericsError where the server does not hold the weights afterwards.
        """
        self._wake()
        held = self._folder / f"weights-{version}"
        save_model(policy, held)
        if not (held / "model.safetensors").is_file() and not (held / "model.safetensors.index.json").is_file():
            raise InputError(
                "adapters are not handed to a server", where="settings", field="model.lora_rank",
                remedy="sample with rollout.engine=native, or train all weights",
            )  # fmt: skip
        try:
            self.server.load(held)
        finally:
            shutil.rmtree(held)
        self.version, self._vocabulary = version, policy.config.vocab_size
        self._device = policy.head.weight.device
        self.proof = self._prove(policy, version)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        uniforms: np.ndarray | None,
        *,
        max_new_tokens: int,
        sampling: Sampling,
    ) -> Rollout:
        """One response per prompt; None for `uniforms` is greedy."""
        if self.version < 0:
            raise RuntimeError("load_weights before generate")
        if not prompts or min(len(p) for p in prompts) == 0:
            raise ValueError("prompts must be non-empty lists of token ids")
        self._wake()
        forbidden = sampling.covering(self._vocabulary)
        drawn = self.server.sample(
            prompts,
            [0] * len(prompts) if uniforms is None else [_seed(row[:max_new_tokens]) for row in uniforms],
            limit=max_new_tokens,
            end_ids=self.end_ids,
            forbidden=() if forbidden is None else forbidden.nonzero()[:, 0].tolist(),
            temperature=0.0 if uniforms is None else sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
        )
        if self.sleeps:
            self.server.sleep()
            self._asleep = True
        return _rollout(prompts, drawn, self.pad_id, self.version, self._device)

    def _wake(self) -> None:
        if self._asleep:
            self.server.wake()
            self._asleep = False

    @torch.no_grad()
    def _prove(self, policy: Decoder, version: int) -> Proof:
        rows = _probes(policy.config.vocab_size, policy.config.max_positions)
        served = torch.tensor(self.server.score(rows.tolist()), dtype=torch.float64)
        mask = torch.ones_like(rows, dtype=torch.bool)
        mask[:, 0] = False
        held, _ = response_logprobs(policy, rows.to(self._device), mask.to(self._device), Sampling())
        own = held[:, 1:].double().cpu()
        gap, moved, nearer = float((served - own).abs().mean()), 0.0, True
        if self._before is not None:
            before, noise = self._before
            moved = float((own - before).abs().mean())
            # Below the server's own rounding the two cannot be told apart.
            nearer = moved <= 4 * noise or gap < float((served - before).abs().mean())
        self._before = (own, gap)
        proof = Proof(version, gap, float((served - own).abs().max()), moved, nearer)
        if not nearer or not gap <= FAR:
            raise NumericsError(
                f"{self.server.name} does not hold the policy's weights after it was told to read them: its log-probs "
                f"of {_PROBES} fixed rows lie {gap:.3g} nats a token from the policy's"
                + ("" if nearer else f", nearer to those of the weights before (which were {moved:.3g} away)")
                + "; is it another model, or does it read another folder?"
            )
        return proof


def _probes(vocabulary: int, positions: int) -> Tensor:
    """Rows of random tokens, the same in every run: unlikely texts show a change of weights best."""
    width = min(_PROBE_TOKENS, positions - 1)
    return torch.from_numpy(np.random.default_rng(20240410).integers(0, vocabulary, (_PROBES, width)))


def _seed(row: np.ndarray) -> int:
    """A seed of 63 bits from a row's uniforms: equal rows, equal seeds."""
    return int.from_bytes(hashlib.sha256(np.ascontiguousarray(row).tobytes()).digest()[:8], "little") >> 1


def _rollout(
    prompts: Sequence[Sequence[int]], drawn: Sequence[Drawn], pad_id: int, version: int, device: torch.device
) -> Rollout:
    asked = torch.tensor([len(p) for p in prompts])
    lengths = asked + torch.tensor([len(d.tokens) for d in drawn])
    index = torch.arange(int(lengths.max()))
    mask = (index >= asked[:, None]) & (index < lengths[:, None])
    tokens, _ = pad_prompts(prompts, len(index), pad_id)
    tokens = tokens.masked_scatter(mask, torch.tensor([t for d in drawn for t in d.tokens]))
    captured = torch.zeros(tokens.shape).masked_scatter(mask, torch.tensor([v for d in drawn for v in d.logprobs]))
    ended = torch.tensor([d.ended for d in drawn])
    return Rollout(*(t.to(device) for t in (tokens, mask, captured, lengths, asked, ended)), version)


def _fast_folder() -> str | None:
    """Where weights pass from process to process without a disk, on Linux."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
