"""In PyTorch: eager, channels_last, compile, bfloat16, compile bfloat16; all but eager channels_last."""

import json
import sys

import torch
from torch import nn
from turns import SIDE, take_turns


class Residual(nn.Module):
    """Its parts in turn, plus what came in."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.parts(x) + x


def conv_mixer(filters: int, depth: int, kernel_size: int, patch_size: int) -> nn.Module:
    """As in the paper's appendix, with Keras' batch norm: momentum 0.9, epsilon 1e-3."""

    def activated(convolution: nn.Module) -> list[nn.Module]:
        return [convolution, nn.GELU(), nn.BatchNorm2d(filters, eps=1e-3, momentum=0.1)]

    blocks = [
        nn.Sequential(
            Residual(*activated(nn.Conv2d(filters, filters, kernel_size, groups=filters, padding="same"))),
            *activated(nn.Conv2d(filters, filters, 1)),
        )
        for _ in range(depth)
    ]
    stem = activated(nn.Conv2d(3, filters, patch_size, patch_size))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(filters, 10))


def main(way: str, model: dict[str, int]) -> None:
    """Take turns at training this model."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = model.pop("batch")
    layout = torch.contiguous_format if way == "eager" else torch.channels_last
    dtype = torch.bfloat16 if "bfloat16" in way else torch.float32
    trained = conv_mixer(**model).to(device, memory_format=layout)
    images = torch.randint(0, 256, (batch, 3, 32, 32), device=device).to(memory_format=layout)
    labels = torch.randint(0, 10, (batch,), device=device)
    optimizer = torch.optim.AdamW(trained.parameters(), 1e-3, weight_decay=1e-4)
    called = torch.compile(trained) if "compile" in way else trained
    square = torch.ones(SIDE, SIDE, dtype=dtype, device=device)

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = nn.functional.cross_entropy(called(images / 255), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()  # a number on the host: the device is done

    def product() -> float:
        (square @ square)[0, 0].item()
        return 2.0 * SIDE**3

    told = {"versions": f"PyTorch {torch.__version__}", "precision": str(dtype).removeprefix("torch.")}
    take_turns(told, step, product)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
