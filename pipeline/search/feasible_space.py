"""Which configurations of a space can be trained: those that fit the images and the limits of the search."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.runtime.errors import UsageError
from pipeline.search.limits import known_costs, why_too_costly
from pipeline.search.space import SearchSpec, infeasibility

# A larger space is not written out: to check that many configurations against the images takes a second
MAX_ENUMERATED = 10_000
# Random draws from such a space, after which the configurations that fit the images count as used up
MAX_RANDOM_DRAWS = 10_000


class FeasibleSpace:
    """The configurations of a search that can be trained.

    Args:
        search: what is searched.
        image_shape: (height, width, channels), in pixels.
        training_images: number of training images after the split.
        classes: number of classes.

    Attributes:
        latencies: milliseconds for one image by network, as far as they have been measured.
    """

    def __init__(self, search: SearchSpec, *, image_shape: Sequence[int], training_images: int, classes: int) -> None:
        self.latencies: Mapping[str, float] = {}
        self._search = search
        self._image_shape, self._training_images, self._classes = image_shape, training_images, classes
        self._configurations: dict[str, dict[str, Any]] | None = None
        # Of configurations as they are drawn: it takes longer to find out what of one has an effect
        self._keys: dict[str, str] = {}

    def key(self, params: Mapping[str, Any]) -> str:
        """Return a text that is the same for configurations with which a training goes the same way."""
        drawn = json.dumps(params, sort_keys=True)
        if drawn not in self._keys:
            self._keys[drawn] = self._search.key(params)
        return self._keys[drawn]

    def why_not(self, params: Mapping[str, object]) -> str | None:
        """Return why a configuration does not fit the images or the limits of the search, or None if it does."""
        reason = infeasibility(
            self._search, params, image_shape=self._image_shape, training_images=self._training_images
        )
        return reason or why_too_costly(self._search.settings, self.costs(params))

    def costs(self, params: Mapping[str, object]) -> dict[str, float]:
        """Return what of the costs of a configuration is known before it is trained."""
        settings = self._search.settings
        if settings.max_parameters is None and settings.max_latency_ms is None:
            return {}
        try:
            config = self._search.config(params)
        except UsageError:
            # It is infeasible anyhow
            return {}
        return known_costs(config, self.latencies, image_shape=self._image_shape, classes=self._classes)

    def is_enumerable(self) -> bool:
        """Return whether the space is small enough to know when all of it has been tried."""
        number = self._search.n_configurations()
        return number is not None and number <= MAX_ENUMERATED

    def configurations(self) -> Mapping[str, dict[str, Any]] | None:
        """Return the feasible configurations by key, or None where the space is too large to list."""
        if not self.is_enumerable():
            return None
        if self._configurations is None:
            self._configurations = {}
            for params in self._search.configurations():
                if self.why_not(params) is None:
                    # The first of those that train alike
                    self._configurations.setdefault(self.key(params), params)
        return self._configurations

    def sample(self, random: np.random.Generator) -> Iterator[dict[str, Any]]:
        """Yield random feasible configurations; some may come again."""
        for _ in range(MAX_RANDOM_DRAWS):
            params = self._search.sample(random)
            if self.why_not(params) is None:
                yield params
