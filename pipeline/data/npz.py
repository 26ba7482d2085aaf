"""Arrays of images and labels, from an .npz file or elsewhere -> one decoded data set."""

from pathlib import Path

import numpy as np
import psutil

from pipeline.data.cache import DIGEST_DTYPE, Allocate, DecodedImages, image_digest
from pipeline.data.class_names import clean_class_names
from pipeline.data.decode import from_pixels, resize_to
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import join_names, printable

Part = tuple[np.ndarray, np.ndarray]  # images (n, h, w) or (n, h, w, c) uint8, labels (n,)
# Split -> the ending of the names of its two arrays, x_... and y_...
ENDINGS = {"train": "train", "validation": "val", "test": "test"}


def stack_splits(
    parts: dict[str, Part],
    classes: tuple[str, ...],
    image_size: tuple[int, int] | None,
    allocate: Allocate,
    *,
    resize: str,
) -> DecodedImages:
    """Join the arrays of splits, whose images have one shape, in the order of training, validation and test.

    Args:
        parts: Images and labels by split.
        classes: Names, by label.
        image_size: (height, width) to resize the images to; None leaves them as they are.
        allocate: Function that returns the array for the images, given its shape.
        resize: How they are resized, see `resize_to`.
    """
    present = [parts[name] for name in ENDINGS if name in parts]
    height, width, channels = (*present[0][0].shape[1:], 1)[:3]
    shape = (*(image_size or (height, width)), channels)
    count = sum(len(labels) for _, labels in present)
    images, digests = allocate((count, *shape)), np.zeros(count, DIGEST_DTYPE)
    row = 0
    for pixels, _ in present:
        for image in pixels.reshape(-1, height, width, channels):
            images[row] = image if image.shape == shape else resize_to(from_pixels(image), shape, resize)
            digests[row] = image_digest(images[row])
            row += 1
    labels = np.concatenate([labels for _, labels in present]).astype(np.int64)
    train, validation, test = (len(parts[name][1]) if name in parts else 0 for name in ENDINGS)
    no_files = np.zeros(count, "S1")
    return DecodedImages(images, digests, labels, no_files, classes, (train, validation, test))


def read_npz(file: Path) -> tuple[dict[str, Part], tuple[str, ...]]:
    """Read the images and labels of each split, and the class names, from an .npz file.

    The file has images (n, h, w) or (n, h, w, c) in x_train and x_test, labels (n,) or (n, 1) from 0 to classes - 1 in
    y_train and y_test, optionally x_val and y_val, and optionally class_names (classes,), strings. Without these,
    classes are named by their numbers.

    Raises:
        UsageError: The file cannot be read, or its arrays do not fit together.
    """
    arrays, others = _load_arrays(file)
    part_names = [part for part, end in ENDINGS.items() if part != "validation" or arrays.keys() & {"x_val", "y_val"}]
    if missing := [f"{axis}_{ENDINGS[p]}" for p in part_names for axis in "xy" if f"{axis}_{ENDINGS[p]}" not in arrays]:
        has = f"has {join_names(others)} instead of" if others else "has no"
        remedy = "save them under these names" if others else "add what is missing"
        raise _npz_error(file, "x_train, y_train, x_test and y_test", f"{has} {join_names(missing)}", remedy)
    parts = {part: _check_part(file, ENDINGS[part], arrays) for part in part_names}
    shapes = {f"x_{ENDINGS[part]}": images.shape[1:] for part, (images, _) in parts.items()}
    if len(set(shapes.values())) > 1:
        raise _npz_error(file, "images of one shape", f"has {shapes}", "bring them to one height, width and channels")
    classes = int(parts["train"][1].max()) + 1
    for part, (_, labels) in parts.items():
        _check_labels_complete(file, f"y_{ENDINGS[part]}", labels, classes)
    return parts, _class_names(file, arrays, classes)


def _load_arrays(file: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Load the arrays that are used, but no pickled objects, so that a file cannot run code.

    Returns:
        The arrays by name, and the names of the others.
    """
    wanted = [f"{axis}_{end}" for axis in "xy" for end in ENDINGS.values()] + ["class_names"]
    try:
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as archive:
            _check_fits_memory(file, sum(member.file_size for member in archive.zip.infolist()))
            arrays = {name: _load_array(file, archive, name) for name in wanted if name in archive.files}
            instead = [name for name in archive.files if name not in wanted]
    except UsageError:
        raise
    except Exception as error:  # a damaged archive can make its reader raise anything
        # NumPy's own message tells how to read pickled objects all the same.
        why = "it holds Python objects, not numbers" if "pickle" in str(error) else error
        raise _npz_error(file, "plain arrays", f"cannot be read ({why})", "save it with numpy.savez") from error
    return arrays, instead


def _load_array(file: Path, archive: "np.lib.npyio.NpzFile", name: str) -> np.ndarray:
    try:
        array: np.ndarray = archive[name]
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        kind = name.split("_")[0]
        remedy = {
            "class": "save class_names.astype(str)",
            "y": f"save {name}.astype('int64'); number names from 0",
            "x": f"save numpy.stack({name}), or files in class folders if the images have several sizes",
        }[kind]
        got = f"cannot be read: {name} holds Python objects, not numbers"
        raise _npz_error(file, "plain arrays", got, remedy) from None
    return array


def _check_fits_memory(file: Path, needed: int) -> None:
    free = psutil.virtual_memory().available
    if needed > free:
        got = f"unpacks to {needed / 1e9:,.1f} GB where {free / 1e9:,.1f} GB of memory are free"
        raise _npz_error(file, "memory for all of it", got, "free some, or give the images as files in class folders")


def _check_part(file: Path, end: str, arrays: dict[str, np.ndarray]) -> Part:
    images, labels = _to_uint8(file, f"x_{end}", arrays[f"x_{end}"]), _to_vector(file, f"y_{end}", arrays[f"y_{end}"])
    if len(images) != len(labels):
        got = f"has {len(images):,} images in x_{end} and {len(labels):,} labels in y_{end}"
        raise _npz_error(file, "one label for each image", got, "make the two equally long")
    return images, labels


def _to_uint8(file: Path, name: str, images: np.ndarray) -> np.ndarray:
    """Return images as uint8, if each value, of whatever type, is a whole number from 0 to 255."""
    if images.ndim not in (3, 4) or 0 in images.shape or (*images.shape, 1)[3] not in (1, 3, 4):
        rule = f"images (n, h, w) or (n, h, w, c) with c of 1, 3 or 4 in {name}"
        raise _npz_error(file, rule, f"has the shape {images.shape}", _shape_remedy(name, images.shape))
    if images.dtype == np.uint8:
        return images
    rule, remedy = f"pixels from 0 to 255, whole numbers, in {name}", "scale and round them, and save as uint8"
    if images.dtype.kind == "b":
        raise _npz_error(file, rule, f"has the type {images.dtype}", f"save {name}.astype('uint8') * 255")
    if images.dtype.kind not in "iuf":
        raise _npz_error(file, rule, f"has the type {images.dtype}", f"save {name}.astype('uint8')")
    if images.dtype.kind == "f" and (strange := int((~np.isfinite(images)).sum())):
        got = f"has {images.dtype} from nan or infinity: {strange:,} such values"
        raise _npz_error(file, rule, got, "replace them, or leave their images out")
    low, high = images.min(), images.max()
    if images.dtype.kind in "iu" and low >= 0 and high > 255:
        remedy = f"scale and save as uint8: {name} // 257 where white is 65,535, {name} // 16 where it is 4,095"
    if images.dtype.kind == "f" and -1 <= low < 0 and high <= 1:
        remedy = f"if white is 1 and black is -1, save (({name} + 1) * 127.5).round().astype('uint8')"
    if low >= 0 and high <= 1:
        remedy = f"multiply by 255, save as uint8: ({name} * 255).round().astype('uint8')"
        raise _npz_error(file, rule, f"has nothing above {high:.4g} in {images.dtype}", remedy)
    if low < 0 or high > 255 or (images != np.floor(images)).any():
        raise _npz_error(file, rule, f"has {images.dtype} from {low:.4g} to {high:.4g}", remedy)
    return images.astype(np.uint8)


def _shape_remedy(name: str, shape: tuple[int, ...]) -> str:
    """Return what makes images (n, h, w, c) of an array of another shape."""
    channels = (1, 3, 4)
    if 0 in shape:
        return "add images, or leave x_val and y_val out" if name == "x_val" else "add images"
    if len(shape) == 4 and shape[1] in channels:
        return f"the channels are first: save {name}.transpose(0, 2, 3, 1)"
    if len(shape) == 4 and shape[2] in channels:
        return f"the images are last: save {name}.transpose(3, 0, 1, 2)"
    if len(shape) == 5 and 1 in shape[1:]:
        return f"save numpy.squeeze({name}, axis={1 + shape[1:].index(1)})"
    if len(shape) == 2:
        return f"each image is a flat row: save {name}.reshape(-1, h, w, c), in the order in which it was flattened"
    if len(shape) == 4:
        return f"leave all but 1, 3 or 4 of the {shape[3]} channels out"
    return "give the array such a shape"


def _to_vector(file: Path, name: str, labels: np.ndarray) -> np.ndarray:
    """Return integer labels (n,) from (n,) or (n, 1)."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 1 and labels.dtype.kind in "iu":
        return labels
    got = f"has the shape {labels.shape} and type {labels.dtype}"
    if labels.dtype.kind in "US":
        remedy = (
            f"number them alike in every split: class_names = numpy.unique(y_train), save that and "
            f"numpy.searchsorted(class_names, {name})"
        )
    elif labels.ndim == 2:
        remedy = f"for one-hot rows save {name}.argmax(axis=1)"
    elif labels.ndim == 1 and labels.dtype.kind in "bf":
        remedy = f"save {name}.astype('int64')"
    else:
        remedy = f"for one-hot rows save {name}.argmax(axis=1), for other numbers {name}.astype('int64')"
    raise _npz_error(file, f"integer labels (n,) or (n, 1) in {name}", got, remedy)


def _check_labels_complete(file: Path, name: str, labels: np.ndarray, classes: int) -> None:
    found = np.unique(labels)
    if name == "y_train" and found[0] == 1 and len(found) == classes - 1:
        got = f"has labels from 1 to {found[-1]}"
        raise _npz_error(file, f"labels from 0 in {name}", got, "save the labels of every split less 1")
    rule = f"every label from 0 to the number of classes - 1 in {name}"
    if found[0] < 0 or found[-1] >= classes:
        got = f"has labels from {found[0]} to {found[-1]}, and the highest in y_train is {classes - 1}"
        raise _npz_error(file, rule, got, "number the classes from 0, alike in every split")
    if len(found) < classes:
        gap = next(number for number, label in enumerate((*found, classes)) if number != label)
        remedy = "number the classes without gaps, each in every split: add images of it, or leave it out of all"
        raise _npz_error(file, rule, f"has none of {gap}", remedy)
    if classes < 2:
        raise _npz_error(file, "at least two classes", f"has one: {found[0]}", "add images of another class")


def _class_names(file: Path, arrays: dict[str, np.ndarray], classes: int) -> tuple[str, ...]:
    if "class_names" not in arrays:
        return tuple(str(label) for label in range(classes))
    names = arrays["class_names"]
    rule = f"{classes} different strings in class_names"
    if names.dtype.kind != "U":
        got = f"has the type {names.dtype}"
        raise _npz_error(file, rule, got, "save class_names.astype(str), or leave it out")
    if names.shape != (classes,) or len(set(names.tolist())) < classes:
        got = f"has {names.size}, {join_names(names.ravel().tolist())}, for the labels from 0 to {classes - 1}"
        raise _npz_error(file, rule, got, "name each class, or leave it out")
    cleaned = {given: clean for clean, given in clean_class_names(names.tolist(), place=file).items()}
    return tuple(cleaned[name] for name in names.tolist())


def _npz_error(file: Path, rule: str, got: str, remedy: str) -> UsageError:
    return UsageError(f"an .npz data set needs {rule}: {printable(file)} {printable(got)}; {remedy}")
