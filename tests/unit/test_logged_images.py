"""Training and evaluating on a prediction log to which the right classes were added."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from resnet_service.cli import main
from resnet_service.errors import ServiceError
from resnet_service.images import Preprocessing
from resnet_service.prediction_log import is_prediction_log
from resnet_service.training.data import load_dataset, load_test_dataset
from tests.support.images import encode, make_image
from tests.support.training import train

PREPROCESSING = Preprocessing(32, 32, (0, 0, 0), (1, 1, 1))
LABELS = ("cat", "dog", "frog")


def write_log(
    folder: Path, classes: Sequence[Any], kind: pa.DataType | None = None, *, first: int = 0, **changes: Any
) -> Path:
    """Write one image for each class, None for one without; `changes` replace columns, None removes one."""
    images = [encode(make_image(seed=first + number)) for number in range(len(classes))]
    columns: dict[str, Any] = {
        "request_id": [f"r{number}" for number in range(len(classes))],
        "sha256": [hashlib.sha256(image).hexdigest() for image in images],
        "image": pa.array(images, pa.binary()),
        "true_class": pa.array(classes, kind),
        **changes,
    }
    folder.mkdir(exist_ok=True)
    table = pa.table({name: values for name, values in columns.items() if values is not None})
    pq.write_table(table, folder / f"{first:03}.parquet")
    return folder


def test_rows_with_a_class_are_the_images_of_a_run(tmp_path: Path) -> None:
    """A fifth of each class is for testing; rows and files without a class are left out."""
    folder = write_log(tmp_path / "log", ["dog"] * 10 + ["cat"] * 5 + [None] * 4)
    write_log(folder, [None] * 3, pa.null(), first=50)
    write_log(folder, ["cat"] * 3, first=60, true_class=None)
    data = load_dataset(str(folder), PREPROCESSING)
    assert (data.labels, data.test_share, data.name) == (("cat", "dog"), 0.2, "log")
    assert data.train.targets.tolist().count(0) == 4
    assert sorted(data.test.targets.tolist()) == [0, 1, 1]
    assert data.digest() == load_dataset(str(folder), PREPROCESSING).digest()
    same = load_test_dataset(str(folder), data.labels, PREPROCESSING, test_share=0.2)
    assert same.images.equal(data.test.images)
    assert len(load_test_dataset(str(folder), LABELS, PREPROCESSING)) == 15


@pytest.mark.parametrize(
    ("classes", "kind"),
    [
        (["Cat", "dog", None, "frog"], pa.string()),
        ([0, 1, None, 2], pa.int64()),
        (["cat", "dog", None, "frog"], pa.dictionary(pa.int32(), pa.large_string())),
    ],
)
def test_class_is_a_label_or_an_index(tmp_path: Path, classes: list[Any], kind: pa.DataType) -> None:
    """Case does not matter, and pandas writes categories as dictionaries."""
    array = pa.array(classes) if pa.types.is_dictionary(kind) else pa.array(classes, kind)
    folder = write_log(tmp_path / "log", classes, true_class=array.cast(kind))
    data = load_test_dataset(str(folder), LABELS, PREPROCESSING)
    assert sorted(data.targets.tolist()) == [0, 1, 2]


def test_image_that_was_logged_twice_is_one_image(tmp_path: Path) -> None:
    """Otherwise it could be trained on and tested with; its classes must agree."""
    folder = write_log(tmp_path / "log", ["cat", "dog", "dog"])
    table = pq.read_table(folder / "000.parquet")
    pq.write_table(table, folder / "again.parquet")
    assert len(load_test_dataset(str(folder), LABELS, PREPROCESSING)) == 3
    other = table.set_column(table.column_names.index("true_class"), "true_class", pa.array(["frog"] * 3))
    pq.write_table(other, folder / "other.parquet")
    with pytest.raises(ServiceError, match=r"row 0 .* is 'frog', but .*, the same image, is 'cat'"):
        load_test_dataset(str(folder), LABELS, PREPROCESSING)


def test_image_that_cannot_be_decoded_is_skipped(tmp_path: Path) -> None:
    images = [encode(make_image(seed=seed)) for seed in range(3)]
    folder = write_log(tmp_path / "log", ["cat"] * 4, image=pa.array([*images, b"nothing"], pa.binary()))
    data = load_test_dataset(str(folder), LABELS, PREPROCESSING)
    assert len(data) == 3
    [(name, reason)] = data.unreadable.items()
    assert "000.parquet row 3" in name
    assert reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"true_class": None}, "has no row with a true_class: add this column"),
        ({"image": pa.array([None] * 3, pa.binary())}, "no image: log with --prediction-log-images"),
        ({"image": None}, "no columns image and sha256: it is not a prediction log"),
        ({"true_class": [0.0, 1.0, 2.0]}, "true_class in .* is double, neither text nor integers"),
        ({"true_class": ["cat", "dog", "bird"]}, "has unknown classes: bird; the known ones are cat, dog"),
        ({"true_class": [0, 1, 3]}, "has the class 3; the model has 3"),
    ],
)
def test_log_that_cannot_be_used_is_an_error(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = write_log(tmp_path / "log", ["cat", "dog", "frog"], **changes)
    with pytest.raises(ServiceError, match=message):
        load_test_dataset(str(folder), LABELS, PREPROCESSING)


def test_other_unusable_data_is_an_error(tmp_path: Path) -> None:
    """A damaged file, one class only, and a URI whose password the log of a run would have."""
    folder = write_log(tmp_path / "one", ["cat"] * 3)
    with pytest.raises(ServiceError, match="needs images of at least two classes, but has only 'cat'"):
        load_dataset(str(folder), PREPROCESSING)
    (folder / "broken.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(ServiceError, match=r"broken\.parquet cannot be used"):
        load_dataset(str(folder), PREPROCESSING)
    with pytest.raises(ServiceError, match="the URI has a password; set AWS_ACCESS_KEY_ID") as caught:
        load_dataset("s3://key:secret@bucket/log", PREPROCESSING)
    assert "secret" not in str(caught.value)


def test_folder_of_classes_with_a_parquet_file_is_not_a_log(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "facts.parquet").touch()
    assert not is_prediction_log(str(tmp_path))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_commands_read_a_log(tmp_path: Path) -> None:
    """`train` and `evaluate`, from the command line."""
    folder = write_log(tmp_path / "log", ["cat", "dog"] * 20)
    result = train(folder, tmp_path / "run", "--size", "32", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"] == {"train": 32, "test": 8}
    result = run("evaluate", "--model", "cifar10", "--data", str(folder), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"] == 40
    result = run("evaluate", "--model", "cifar10", "--data", str(write_log(tmp_path / "x", ["lynx"])))
    assert (result.exit_code, "has unknown classes: lynx" in result.output) == (1, True)
