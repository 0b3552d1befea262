"""The classes that folders are named after."""

import pytest

from resnet_service.models import catalog
from resnet_service.models.class_folders import class_folder, classes_of_folder


@pytest.mark.parametrize(
    ("path", "folder", "labels"),
    [
        ("photos/dog/1.jpg", "dog", {"dog"}),
        ("photos/Tabby Cat/1.jpg", "Tabby Cat", {"tabby_cat"}),
        ("dog/cat_1.jpg", "dog", {"dog"}),
        ("dog.jpg", None, set()),
        ("photos/dog_12.jpg", None, set()),
        ("photos/hotdog/1.jpg", None, set()),
        ("n02099601/1.jpg", None, set()),
    ],
)
def test_true_class_is_the_name_of_the_folder(path: str, folder: str | None, labels: set[str]) -> None:
    """Case and separators do not matter; names match as a whole; the name of the file is not a label."""
    all_labels = ("cat", "dog", "tabby_cat")
    assert class_folder(path, all_labels) == folder
    assert {all_labels[index] for index in classes_of_folder(folder or "", all_labels)} == labels


@pytest.mark.parametrize(
    ("folder", "label"),
    [
        ("n02102040", "English springer"),
        ("n02102040-English_springer", "English springer"),
        ("golden retriever", "golden retriever"),
        ("crane", "crane"),
    ],
)
def test_folders_of_imagenet_have_labels_or_wordnet_ids(folder: str, label: str) -> None:
    labels = catalog.get_spec("resnet50").labels
    assert {labels[index] for index in classes_of_folder(folder, labels)} == {label}


def test_label_with_the_same_spelling_comes_first() -> None:
    """Labels may differ in case and separators only; a folder with a third spelling is named after all."""
    labels = ("a b", "A_B")
    assert classes_of_folder("A_B", labels) == {1}
    assert classes_of_folder("A B", labels) == {0, 1}
