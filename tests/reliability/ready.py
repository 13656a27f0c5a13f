"""Imported once by the server that test processes are forked from."""

from __future__ import annotations

import torch

from trueline.tasks.dialogue import Config, Dialogue
from trueline.training import pages, reward

torch.set_num_threads(1)
pages.pages()
reward._CALIBRATION_SAMPLES = 32
TASK = Dialogue(Config(demonstrations=800, pairs=120))
