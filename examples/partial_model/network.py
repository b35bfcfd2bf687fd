"""A backbone that never changes, a neck all sites learn together, and a head each site has for itself."""

import torch
from torch import nn


class PartialModel(nn.Module):
    """Digits in three parts: `backbone` (frozen), `neck` (federated), `head` (local)."""

    def __init__(self) -> None:
        super().__init__()
        # A real backbone would load pretrained weights here; they travel with the experiment, once.
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
        )
        self.neck = nn.Sequential(nn.Linear(32 * 4 * 4, 64), nn.ReLU())
        self.head = nn.Linear(64, 10)
        self.backbone.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits of the ten digits."""
        return self.head(self.neck(self.backbone(images)))
