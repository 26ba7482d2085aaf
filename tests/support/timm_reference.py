"""Write one of timm's ConvMixers and what it answers: `python -m tests.support.timm_reference NAME FOLDER`.

It has a process of its own, as PyTorch and TensorFlow in one process may crash.
"""

import sys
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from timm.models.convmixer import ConvMixer


def write_reference(name: str, folder: Path) -> None:
    """Write model.safetensors, images.npy (2, h, w, 3) and logits.npy (2, classes); `small` names no published one."""
    torch.manual_seed(0)
    if name == "small":
        model = ConvMixer(32, 3, kernel_size=5, patch_size=4, num_classes=10)
        mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    else:
        model = timm.create_model(name, pretrained=False)
        mean, deviation = model.default_cfg["mean"], model.default_cfg["std"]
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                tensor.uniform_(0.5, 2)
    side = 8 * model.stem[0].kernel_size[0]
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3)).astype(np.float32)
    standardized = ((images / 255 - mean) / deviation).astype(np.float32).transpose(0, 3, 1, 2)
    with torch.no_grad():
        logits = model.eval()(torch.tensor(standardized)).numpy()
    save_file(model.state_dict(), folder / "model.safetensors")
    np.save(folder / "images.npy", images)
    np.save(folder / "logits.npy", logits)


if __name__ == "__main__":
    write_reference(sys.argv[1], Path(sys.argv[2]))
