"""The data that a run's settings ask for."""

from pipeline import data
from pipeline.config import Config


def load_data(config: Config) -> data.Data:
    """Load and split the data; see `pipeline.data.load`.

    Raises:
        UsageError: data that is not there, or that cannot be used.
    """
    return data.load(
        config.dataset,
        image_size=config.image_size,
        validation_fraction=config.validation_fraction,
        train_examples=config.train_examples,
        seed=config.seed,
    )
