"""Sampling at a vLLM server: every hand-over of weights is proved by log-probs, draws belong to rows.

Weights go over as files that both see, or over a process group (`rollout/vllm_group.py`).

A row's seed is made of its uniforms, so that a sample hangs neither on the batch nor on who asks; the draws themselves
are the server's, and are others than the native engine's.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trueline.errors import InputError, NumericsError
from trueline.models.checkpoints import hub_pieces, save_model
from trueline.models.decoder import Decoder
from trueline.models.scoring import Sampling, response_logprobs
from trueline.rollout.engine import Rollout, pad_prompts
from trueline.rollout.vllm_client import Drawn, VllmServer
from trueline.rollout.vllm_group import WeightGroup

__all__ = ["FAR", "Proof", "VllmEngine", "probe_logprobs"]

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
    `group` weights go over a process group instead. With `sleeps` the server gives the accelerator's memory back
    whenever it is not sampling.
    """

    def __init__(
        self,
        server: VllmServer,
        *,
        pad_id: int,
        end_id: int | Sequence[int],
        folder: str = "",
        group: bool = False,
        sleeps: bool = False,
    ) -> None:
        self.server, self.pad_id, self.sleeps = server, pad_id, sleeps
        self._by_group, self._group = group, None
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
        if self._group is not None:
            self._group.close()
        try:
            self._wake()
        finally:
            self.server.close()

    def load_weights(self, policy: Decoder, version: int) -> None:
        """Let the server take the weights, and hold what it then says against the policy.

        Raises NumericsError where the server does not hold the weights afterwards.
        """
        self.hand_over(policy, version, probe_logprobs(policy), policy.state_dict().items())

    def hand_over(self, policy: Decoder, version: int, own: Tensor, weights: Iterable[tuple[str, Tensor]]) -> None:
        """The same where `own` are the policy's `probe_logprobs`, and `weights` its tensors as they are put together:
        over a group the policy may lie in parts among processes, as files, which need no `weights`, it must not."""
        self._wake()
        if self._by_group:
            self._send(policy, weights)
        else:
            self._write(policy, version)
        self.version, self._vocabulary = version, policy.config.vocab_size
        self._device = policy.head.weight.device
        self.proof = self._prove(own, version)

    def _send(self, policy: Decoder, weights: Iterable[tuple[str, Tensor]]) -> None:
        if not isinstance(policy, Decoder):
            raise TypeError(f"{type(policy).__name__}: weights of this architecture do not go over a group")
        if self._group is None:
            self._group = WeightGroup(self.server, policy.head.weight.device)
        wire = [
            (hub, str(piece.dtype).removeprefix("torch."), tuple(piece.shape))
            for name, tensor in policy.state_dict().items()
            for hub, piece in _pieces(policy, name, torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"))
        ]
        self._group.send(wire, (piece for name, held in weights for piece in _pieces(policy, name, held)))
        self.server.forget()

    def _write(self, policy: Decoder, version: int) -> None:
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

    def _prove(self, own: Tensor, version: int) -> Proof:
        rows = _probes(self._vocabulary, 1 + own.shape[1])
        served = torch.tensor(self.server.score(rows.tolist()), dtype=torch.float64)
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


@torch.no_grad()
def probe_logprobs(policy: Decoder) -> Tensor:
    """The policy's log-probs of the rows of a proof, [rows, tokens - 1]; all processes that hold a part must ask."""
    device = next(policy.parameters()).device
    rows = _probes(policy.config.vocab_size, min(_PROBE_TOKENS, policy.config.max_positions - 1))
    mask = torch.ones_like(rows, dtype=torch.bool)
    mask[:, 0] = False
    held, _ = response_logprobs(policy, rows.to(device), mask.to(device), Sampling())
    return held[:, 1:].double().cpu()


def _pieces(policy: Decoder, name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
    return hub_pieces(policy.config, name, tensor).items()


def _probes(vocabulary: int, width: int) -> Tensor:
    """Rows of random tokens, the same in every run: unlikely texts show a change of weights best."""
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
