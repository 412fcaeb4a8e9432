"""The torch backend: what it promises beyond the model it runs."""

import torch
from torch import Tensor

from models.config import PRESETS
from models.lewm import LeWM
from models.random_weights import random_model
from service.backends.torch import TorchBackend

CPU = torch.device("cpu")
CONFIG = PRESETS["edge"]


def test_batches_are_given_up_where_they_would_change_a_latent() -> None:
    class Entangled(LeWM):
        """Adds the batch's size to every latent."""

        def features(self, frames: Tensor) -> Tensor:
            return super().features(frames) + len(frames)

    model = Entangled(CONFIG)
    model.load_state_dict(random_model(CONFIG).state_dict())
    backend = TorchBackend(model, CPU)
    backend.warm_up()
    frames = torch.zeros(3, CONFIG.image_size, CONFIG.image_size, 3, dtype=torch.uint8)
    assert torch.equal(backend.encode(frames)[:1], backend.encode(frames[:1]))


def test_each_backend_runs_on_its_own_number_of_threads() -> None:
    before = torch.get_num_threads()
    one, three = (TorchBackend(random_model(CONFIG), CPU) for _ in range(2))
    one.threads, three.threads = 1, 3
    frames = torch.zeros(1, CONFIG.image_size, CONFIG.image_size, 3, dtype=torch.uint8)
    try:
        for backend in (one, three, one):
            backend.encode(frames)
            assert torch.get_num_threads() == backend.threads
    finally:
        torch.set_num_threads(before)
