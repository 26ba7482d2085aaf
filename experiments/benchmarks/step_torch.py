"""A worker of step.py that trains with PyTorch.

Usage: python step_torch.py 'eager|channels_last|compile|bfloat16|compile bfloat16' MODEL

All variants but eager use the memory format channels_last.
"""

import json
import sys

import torch
from step_worker import MATRIX_SIDE, answer_requests
from torch import nn


class Residual(nn.Module):
    """Apply modules in sequence and add the input."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*modules)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + x


def conv_mixer(filters: int, depth: int, kernel_size: int, patch_size: int) -> nn.Module:
    """Build ConvMixer as in the paper's appendix, with Keras' batch norm: momentum 0.9, epsilon 1e-3."""

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


def main(variant: str, shape: dict[str, int]) -> None:
    """Build the model of a variant and train it a step at a time.

    Args:
        variant: One of those above.
        shape: Batch size, filters, depth, kernel_size and patch_size.
    """
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = shape.pop("batch")
    layout = torch.contiguous_format if variant == "eager" else torch.channels_last
    dtype = torch.bfloat16 if "bfloat16" in variant else torch.float32
    model = conv_mixer(**shape).to(device, memory_format=layout)
    images = torch.randint(0, 256, (batch, 3, 32, 32), device=device).to(memory_format=layout)
    labels = torch.randint(0, 10, (batch,), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-4)
    forward = torch.compile(model) if "compile" in variant else model
    matrix = torch.ones(MATRIX_SIDE, MATRIX_SIDE, dtype=dtype, device=device)

    def train_step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = nn.functional.cross_entropy(forward(images / 255), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # Reading a number on the host waits for the device.
        return loss.item()

    def multiply() -> float:
        (matrix @ matrix)[0, 0].item()
        return 2.0 * MATRIX_SIDE**3

    properties = {"versions": f"PyTorch {torch.__version__}", "precision": str(dtype).removeprefix("torch.")}
    answer_requests(properties, train_step, multiply)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
