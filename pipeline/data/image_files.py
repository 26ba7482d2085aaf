"""The image files to predict, and their labels if their folders have the names of classes."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.class_names import clean_class_name
from pipeline.data.decode import FORMAT_NAMES
from pipeline.data.walk import describe_passed_over, walk_images
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import printable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFiles:
    """Files to predict."""

    root: Path  # the files' names are relative to it
    files: list[str]

    def display_name(self, file: str) -> str:
        """Return the path of a file relative to the root, as it is printed."""
        return printable(Path(file).relative_to(self.root).as_posix())

    def labels_from_folders(self, classes: Sequence[str]) -> list[int | None]:
        """Return the class of each file as a position in `classes`, taken from the name of its folder.

        A file outside any folder has None; all files have None if a folder has the name of no class.
        """
        if self.folders_without_class(classes):
            return [None] * len(self.files)
        positions: dict[str, int | None] = {name: position for position, name in enumerate(classes)}
        return [positions.get(self._folder(file)) for file in self.files]

    def folders_without_class(self, classes: Sequence[str]) -> list[str]:
        """Return the folders that have the name of no class, sorted."""
        return sorted({self._folder(file) for file in self.files} - {"", *classes})

    def _folder(self, file: str) -> str:
        """Return the folder directly below the root that contains a file; empty for a file in the root itself."""
        first, *further = Path(file).relative_to(self.root).parts
        return clean_class_name(first) if further else ""


def find_images(images: Path) -> ImageFiles:
    """Return a single image file, whatever its suffix, or all image files in a folder, in the order of their bytes.

    Hidden files and folders are ignored; other files of a folder that are no images are counted in a warning.

    Raises:
        UsageError: The folder cannot be read, or has no image.
    """
    if not images.is_dir():
        return ImageFiles(images.parent, [str(images)])
    passed_over = Counter[str]()
    files = sorted((file.path for file in walk_images(images, passed_over)), key=os.fsencode)
    if not files:
        instead = f"has {describe_passed_over(passed_over)}" if passed_over else "has none"
        raise UsageError(
            f"images must be a folder with {FORMAT_NAMES} files, at any depth, got {printable(images)}, which {instead}"
        )
    if passed_over:
        log.warning(
            "passed over in %s, as no image has such a suffix: %s", printable(images), describe_passed_over(passed_over)
        )
    return ImageFiles(images, files)
