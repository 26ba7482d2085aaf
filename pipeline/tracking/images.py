"""Pictures as MLflow's chart view compares them: an image grid of several runs, with a slider over steps.

The view reads the tag `mlflow.loggedImages` and the names of the files below `images/`, as `mlflow.log_image` writes
them (mlflow/tracking/client.py). That function makes up a part of each name, so that a resumed run would log an image
twice; here a name depends on the run, the key and the step alone, and a second upload replaces the first.
"""

import shutil
import uuid
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from pipeline.tracking.outbox.records import FileWriter
from pipeline.tracking.outbox.spool import Figure

FOLDER = "images"
# MLflow's own is 256, in which no axis label can be read
PREVIEW_PIXELS = 640


def image_name(run_id: str, key: str, step: int) -> str:
    """Return the name of an image's file, without its suffix.

    Args:
        run_id: The run that logs it.
        key: What it shows; runs are compared by it. Letters, digits, spaces and any of _-./ are allowed.
        step: Its place on the slider.
    """
    digest = uuid.uuid5(uuid.NAMESPACE_URL, f"{run_id}/{key}/{step}")
    return f"{key.replace('/', '~')}+step+{step}+timestamp+0+{digest}"


def save_image(name: str, figure: Figure, *, copies: Sequence[str] = ()) -> FileWriter:
    """Return a writer of a picture and its preview, and of copies under plain paths.

    Args:
        name: See `image_name`.
        figure: Drawn once for all PNG files, and once more for each copy of another kind.
        copies: Paths among the run's artifacts, such as `plots/curves.svg`.
    """

    def write(folder: Path) -> None:
        (folder / FOLDER).mkdir()
        full = folder / FOLDER / f"{name}.png"
        drawn = BytesIO()
        # not compressed, so that both files are made of the same pixels in little time
        figure.savefig(drawn, format="png", pil_kwargs={"compress_level": 0})
        picture = Image.open(drawn).convert("RGB")
        picture.save(full)
        picture.thumbnail((PREVIEW_PIXELS, PREVIEW_PIXELS))
        # half of the time, and three quarters of the size, that Pillow's defaults take
        picture.save(full.with_name(f"{name}+compressed.webp"), method=2, quality=60)
        for path in copies:
            copy = folder / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            if copy.suffix == full.suffix:
                shutil.copyfile(full, copy)
            else:
                figure.savefig(copy)

    return write
