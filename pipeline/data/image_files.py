"""The image files that were named and, where their folders are called as classes of the model, their true classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.folder import image_files
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import printable


@dataclass(frozen=True)
class ImageFiles:
    """Files to predict."""

    root: Path  # their names in the table are below it
    files: list[str]

    def display_name(self, file: str) -> str:
        """What a file is called in the table."""
        return printable(Path(file).relative_to(self.root).as_posix())

    def labels_from_folders(self, classes: Sequence[str]) -> list[int | None]:
        """The position of each file's class: that which its folder is called as.

        None of a file that lies in no folder; and of all, where a folder is called as none of the classes.
        """
        if self.folders_without_class(classes):
            return [None] * len(self.files)
        places: dict[str, int | None] = {name: place for place, name in enumerate(classes)}
        return [places.get(self._folder(file)) for file in self.files]

    def folders_without_class(self, classes: Sequence[str]) -> list[str]:
        """The folders that are called as none of the classes, in order."""
        return sorted({self._folder(file) for file in self.files} - {"", *classes})

    def _folder(self, file: str) -> str:
        """The folder right below the root that a file lies in; empty where it lies in the root itself."""
        first, *further = Path(file).relative_to(self.root).parts
        return printable(first) if further else ""


def find_images(images: Path) -> ImageFiles:
    """The image that `images` is, whatever its suffix, or those in the folder that it is.

    Raises:
        UsageError: the folder cannot be read or has no image.
    """
    if not images.is_dir():
        return ImageFiles(images.parent, [str(images)])
    files = image_files(images)
    if not files:
        raise UsageError(
            f"images must be a folder with JPEG, PNG, BMP or WebP files, at any depth, got {images}, which has none"
        )
    return ImageFiles(images, files)
