"""Stand-ins for a run and its data set, for tests of what is logged and printed around a training."""

from types import SimpleNamespace


class FakeRun:
    """A run that remembers its calls.

    Args:
        conflicts: names of metrics that were logged with other values before.
    """

    id = "abc"

    def __init__(self, *, conflicts=(), is_superseded=False):
        self.calls = []
        self.conflicts = set(conflicts)
        self.is_superseded = is_superseded

    def log_epoch(self, epoch, metrics):
        self.calls.append((epoch, metrics))
        return self.conflicts

    def load_logged_state(self):
        return "smoke"

    def set_name(self, name):
        self.name = name
        return name

    def log_params(self, params):
        self.params = params

    def __getattr__(self, name):
        return lambda *arguments, **named: self.calls.append((name, arguments, named))


class FakeSplit(list):
    """A split of one image."""

    digest = "f00d"

    def __init__(self):
        super().__init__([None])

    def class_sizes(self, classes):
        return [1] * classes


def small_dataset(source="digits"):
    split = FakeSplit()
    return SimpleNamespace(
        name="digits",
        source=source,
        fingerprint="f00d",
        duplicates=0,
        image_shape=(8, 8, 1),
        classes=("0",),
        folds=(),
        train=split,
        validation=split,
        test=split,
    )
