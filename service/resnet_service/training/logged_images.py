"""Training and test images from a prediction log to which the right classes were added."""

from typing import TYPE_CHECKING

from resnet_service.errors import TrainingError
from resnet_service.prediction_log import require_parquet
from resnet_service.training.image_folder import (
    ImageFolder,
    LabeledFiles,
    LabeledImage,
    match_classes,
    split_images,
)

if TYPE_CHECKING:  # it needs an extra
    from resnet_service.prediction_log.reader import LabeledPrediction


def index_log(source: str, test_share: float) -> ImageFolder:
    """Return the labeled images of a log, of which `test_share` of each class is split off for testing.

    The labels are the names of the classes in alphabetical order; an index becomes its number as text. Raises
    TrainingError for fewer than two classes or one with a single image, MissingDependencyError, and what
    `read_labeled` raises.
    """
    predictions = _read(source)
    labels = tuple(sorted({str(prediction.true_class) for prediction in predictions}))
    if len(labels) < 2:
        raise TrainingError(f"{source} needs images of at least two classes, but has only {labels[0]!r}")
    indices = {label: index for index, label in enumerate(labels)}
    images = tuple((prediction.image, indices[str(prediction.true_class)]) for prediction in predictions)
    train, test = split_images(images, labels, test_share)
    return ImageFolder(labels, LabeledFiles(train), LabeledFiles(test), test_share)


def index_test_log(source: str, labels: tuple[str, ...], test_share: float = 1.0) -> LabeledFiles:
    """Return the labeled images of a log with their index in `labels`, or those that `index_log` splits off.

    Raises TrainingError for a class that is not one of `labels`, and what `index_log` raises.
    """
    predictions = _read(source)
    true_classes = {prediction.true_class for prediction in predictions}
    names = sorted(name for name in true_classes if isinstance(name, str))
    indices: dict[str | int, int] = dict(enumerate(range(len(labels))))
    indices.update(match_classes(names, labels, source))
    if unknown := true_classes - indices.keys():
        raise TrainingError(f"{source} has the class {min(map(str, unknown))}; the model has {len(labels)}")
    images: tuple[LabeledImage, ...] = tuple(
        (prediction.image, indices[prediction.true_class]) for prediction in predictions
    )
    if test_share < 1:
        images = split_images(images, labels, test_share)[1]
    return LabeledFiles(images)


def _read(source: str) -> "list[LabeledPrediction]":
    require_parquet()
    from resnet_service.prediction_log.reader import read_labeled

    return read_labeled(source)
