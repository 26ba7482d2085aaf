"""The image files that were named and, where their folders are called as the model's classes, their true classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.images.folder import image_files
from pipeline.printable import printable


@dataclass(frozen=True)
class Found:
    """Files to predict."""

    root: Path  # their names in the table are below it
    files: list[str]

    def name(self, file: str) -> str:
        """What a file is called in the table."""
        return printable(Path(file).relative_to(self.root).as_posix())

    def truth(self, classes: Sequence[str]) -> list[int] | None:
        """The position of each file's class; None unless the folders are, one to one, called as the classes."""
        folders = [printable(Path(file).relative_to(self.root).parts[0]) for file in self.files]
        if set(folders) != set(classes):
            return None
        places = {name: place for place, name in enumerate(classes)}
        return [places[folder] for folder in folders]


def find(images: Path) -> Found:
    """The image that `images` is, whatever its suffix, or those in the folder that it is.

    Raises:
        UsageError: the folder cannot be read or has no image.
    """
    if not images.is_dir():
        return Found(images.parent, [str(images)])
    files = image_files(images)
    if not files:
        raise UsageError(
            f"images must be a folder with JPEG, PNG, BMP or WebP files, at any depth, got {images}, which has none"
        )
    return Found(images, files)
