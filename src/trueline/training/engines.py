"""Who samples for a stage: this process, samplers on a cluster, or a vLLM server that this run alone gives weights."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from trueline.data.chat import ChatTokenizer
from trueline.distributed.settings import ClusterSettings
from trueline.distributed.sharding import each_whole, whole, whole_for_leader
from trueline.distributed.world import World
from trueline.errors import RunError
from trueline.models.decoder import Decoder
from trueline.rollout.engine import RolloutEngine
from trueline.rollout.native import NativeEngine
from trueline.rollout.settings import RolloutSettings
from trueline.rollout.vllm import Proof, VllmEngine, probe_logprobs
from trueline.rollout.vllm_client import VllmServer
from trueline.runs.lock import held
from trueline.training.elsewhere import ClusterEngine
from trueline.training.together import LedEngine, SharedEngine

__all__ = ["Engines"]


class Engines:
    """The engines of one stage. A server is taken at its first use and given back by `close`."""

    def __init__(
        self,
        settings: RolloutSettings,
        world: World,
        tokenizer: ChatTokenizer,
        cluster: ClusterSettings,
        tell: Callable[[str], None],
    ) -> None:
        self.settings, self._cluster, self._tell = settings, cluster, tell
        self._elsewhere: ClusterEngine | None = None
        self._world, self._pad_id, self._end_ids = world, tokenizer.pad_id, tokenizer.end_ids
        self._served: VllmEngine | None = None
        self._version = 0
        self._open = ExitStack()

    @property
    def exact(self) -> bool:
        """Whether sampling and scoring are one arithmetic, so that their log-probs agree to rounding."""
        return self.settings.engine == "native"

    @property
    def proof(self) -> Proof | None:
        """Of the last weights that were handed to a server."""
        return self._served.proof if self._served else None

    def of(self, policy: Decoder) -> RolloutEngine:
        """An engine that samples from `policy`, which may lie in parts: then all its processes must ask."""
        if not self.exact:
            return self._at_server(policy)
        # Where a pass rounds the weights of its products, that is done once. A CPU's kernels make copies of their own.
        low = policy.trunk.precision == "bf16" and next(policy.parameters()).device.type != "cpu"
        policy = whole(policy, low=low)
        if self._cluster.samplers and self._world.size == 1:
            return self._on_cluster(policy)
        engine: RolloutEngine = NativeEngine(pad_id=self._pad_id, end_id=self._end_ids)
        if self._world.size > 1:
            engine = SharedEngine(engine, self._world, self._pad_id)
        engine.load_weights(policy, 0)
        return engine

    def _on_cluster(self, policy: Decoder) -> ClusterEngine:
        if self._elsewhere is None:
            self._elsewhere = ClusterEngine(self._cluster, pad_id=self._pad_id, end_ids=self._end_ids, tell=self._tell)
            self._open.callback(self._elsewhere.close)
        self._elsewhere.load_weights(policy, 0)
        return self._elsewhere

    def _at_server(self, policy: Decoder) -> RolloutEngine:
        self._version += 1
        if self._world.leads:
            self._served = self._served or self._taken()
        own, held, weights = probe_logprobs(policy), policy, each_whole(policy)
        if self.settings.transfer == "files":
            held, weights = whole_for_leader(policy, self._world), iter(())
        if self._served is not None:
            self._served.hand_over(held, self._version, own, weights)
        else:
            deque(weights, maxlen=0)  # every process takes part in putting them together
        return LedEngine(self._served, self._world) if self._world.size > 1 else self._served

    def _taken(self) -> VllmEngine:
        """The first server that no other run holds."""
        settings, refusals = self.settings, []
        for url in settings.url:
            server = VllmServer(url, timeout=settings.timeout)
            try:
                self._open.enter_context(held(_place(server.name)))
            except RunError as refusal:
                refusals.append(f"{server.name} ({str(refusal).split(': ')[1].split(' is at work')[0]})")
                continue
            server.check()
            return self._open.enter_context(
                VllmEngine(
                    server,
                    pad_id=self._pad_id,
                    end_id=self._end_ids,
                    folder=settings.folder,
                    group=settings.transfer == "group",
                    sleeps=settings.sleep,
                )
            )
        raise RunError(
            f"every vLLM server is in use by another run: {', '.join(refusals)}; two would mix their weights"
        )

    def until_closed(self, end: Callable[[], None]) -> None:
        """Call `end` when this is closed: what was opened for the stage ends with it."""
        self._open.callback(end)

    def close(self) -> None:
        """Give the server back, and end the helpers."""
        self._served = self._elsewhere = None
        self._open.close()


def _place(name: str) -> Path:
    """Where the lock of a server lies on this machine: its weights are one run's at a time."""
    code = hashlib.sha256(name.encode()).hexdigest()[:16]
    place = Path(tempfile.gettempdir()) / f"trueline-vllm-{os.getuid()}-{code}"
    place.mkdir(mode=0o700, exist_ok=True)
    return place
