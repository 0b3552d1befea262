"""The model repository: its layout, model.yaml and traffic.yaml, and every error with its path and reason."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_service.errors import ModelLoadError, ModelNotFound
from resnet_service.models import ModelSource, load_model
from resnet_service.models.repository import (
    ModelConfig,
    ModelOptions,
    ModelRepository,
    ModelVersion,
    TrafficSplit,
    VersionConfig,
)
from resnet_service.models.yaml_reader import MAX_BYTES
from resnet_service.settings import Settings
from tests.support.models import write_checkpoint

NAME = "pets"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return an empty repository."""
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.fixture
def version(root: Path) -> Path:
    """Return the empty folder of the version 1 of the model `NAME`."""
    return add_version(root, "1")


def add_version(root: Path, number: str, text: str | None = None) -> Path:
    """Create a version of the model `NAME`, with this text in model.yaml if it is not None."""
    folder = root / NAME / number
    folder.mkdir(parents=True)
    if text is not None:
        (folder / "model.yaml").write_text(text, encoding="utf-8")
    return folder


def read(root: Path) -> ModelConfig:
    return ModelRepository(root).read(NAME)


def read_source(root: Path) -> ModelSource:
    [config] = read(root).versions
    return config.source


def read_error(root: Path, name: str = NAME) -> str:
    """Read a model, which must fail, and return the message, which must be short and printable."""
    with pytest.raises(ModelLoadError) as caught:
        ModelRepository(root).read(name)
    message = str(caught.value)
    assert str(root) in message
    assert message.isprintable()
    assert len(message) < 1500
    return message


def test_versions_are_read_in_the_order_of_their_numbers(root: Path) -> None:
    for number in ("10", "9", "100"):
        add_version(root, number, f"model: cifar10\nmax_batch: {number}")
    assert read(root) == ModelConfig(
        NAME,
        tuple(
            VersionConfig(
                ModelVersion(NAME, number), ModelSource("cifar10"), ModelOptions(max_batch=int(number))
            )
            for number in ("9", "10", "100")
        ),
        TrafficSplit(),
    )


@pytest.mark.parametrize("file", ["a.safetensors", "a.onnx", "A.ONNX"])
def test_a_single_file_is_the_model(root: Path, version: Path, file: str) -> None:
    """Other files beside it have no effect, such as the labels of an ONNX file or its weights."""
    for name in (file, "a.json", "weights.data", "notes.txt", ".a.onnx.swp"):
        (version / name).touch()
    [config] = read(root).versions
    assert config == VersionConfig(ModelVersion(NAME, "1"), ModelSource(str(version / file)), ModelOptions())


def test_a_checkpoint_of_the_repository_is_loaded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the path of the repository is relative and looks like the name of a model of timm."""
    add_version(root, "1")
    root.rename(root.with_name("timm"))
    monkeypatch.chdir(root.parent)
    write_checkpoint(Path("timm", NAME, "1", "a.safetensors"), label_prefix="my ")
    model = load_model(read_source(Path("timm")))
    assert model.labels[3] == "my cat"


def test_model_yaml_names_a_source_and_options(root: Path) -> None:
    """It decides where there are several files; the paths are relative to its folder."""
    text = """
        model: resnet50
        weights: mine.pth
        labels: ../labels.txt
        preprocessing: {resize: 300, mean: [0.5, 0.5, 0.5]}
        weights_sha256: "01234567"
        device: CUDA:0,cuda:1
        runtime: Torch
        precision: bf16
        streams_per_device: 2
        max_batch: 16
        max_wait_ms: 1.5
        max_concurrency: 512
        max_queue: 1000
        max_queue_wait_s: 5
        model_threads: 4
    """
    folder = add_version(root, "1", text)
    for path in (folder / "mine.pth", folder / "other.pth", folder / "a.onnx", folder.parent / "labels.txt"):
        path.touch()
    [config] = read(root).versions
    assert config.source == ModelSource(
        "resnet50",
        str(folder / "mine.pth"),
        folder / "../labels.txt",
        json.dumps({"resize": 300, "mean": [0.5, 0.5, 0.5]}),
        "01234567",
    )
    assert config.options == ModelOptions(
        device="cuda:0,cuda:1",
        runtime="torch",
        precision="bf16",
        streams_per_device=2,
        max_batch=16,
        max_wait_ms=1.5,
        max_concurrency=512,
        max_queue=1000,
        max_queue_wait_s=5,
        model_threads=4,
    )
    assert set(ModelOptions.model_fields) == config.options.model_fields_set
    assert set(ModelOptions.model_fields) <= set(Settings.model_fields)


@pytest.mark.parametrize("name", ["cifar10", "efficientnet_lite0", "resnet18", "timm/resnet50.a1_in1k"])
def test_model_yaml_names_a_classifier(root: Path, name: str) -> None:
    add_version(root, "1", f"model: {name}")
    assert read_source(root) == ModelSource(name)


def test_model_yaml_names_a_file(root: Path) -> None:
    folder = add_version(root, "1", "model: files/a.onnx\npreprocessing: own.json")
    (folder / "files").mkdir()
    (folder / "files" / "a.onnx").touch()
    (folder / "own.json").touch()
    assert read_source(root) == ModelSource(
        str(folder / "files/a.onnx"), preprocessing=str(folder / "own.json")
    )


@pytest.mark.parametrize("weights", ["IMAGENET1K_V1", "https://example.org/resnet50.pth"])
def test_weights_that_are_not_files_are_kept(root: Path, weights: str) -> None:
    add_version(root, "1", f"model: resnet50\nweights: {weights}")
    assert read_source(root) == ModelSource("resnet50", weights)


def test_a_byte_order_mark_and_comments_are_accepted(root: Path) -> None:
    add_version(root, "1", "\ufeff# a comment\n---\n{model: 'cifar10'}\n")
    assert read_source(root) == ModelSource("cifar10")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a mapping"),
        ("# nothing", "is not a mapping"),
        ("- model: cifar10", "is not a mapping"),
        ("model: [a", "line 1, column 10: expected ',' or ']'"),
        ("model: a\n b: c: d", "line 2, column 3: mapping values are not allowed"),
        ("model: a\x07", "special characters are not allowed"),
        ("model: cifar10\n---\nmodel: resnet50", "line 2, column 1: but found another document"),
        ("model: cifar10\nmodel: resnet50", "line 2, column 1: the key 'model' occurs twice"),
        ("model: a\npreprocessing: {crop: 1, crop: 2}", "line 2, column 26: the key 'crop' occurs twice"),
        ("model: a\nyes: 1", "line 2, column 1: a key is not text; put it in quotes"),
        ("? [a]\n: b", "line 1, column 3: a key is not text"),
        ("<<: {model: cifar10}", "line 1, column 1: a key is not text"),
        ("model: !!python/object/apply:os.system [true]", "line 1, column 8: tags are not supported"),
        ("model: !!binary aGVsbG8=", "tags are not supported, and this is 'tag:yaml.org,2002:binary'"),
        ("model: &a cifar10\nlabels: *a", "line 1, column 8: anchors and aliases are not supported"),
        ("model: *a", "line 1, column 8: anchors and aliases are not supported"),
        (f"model: {'[' * 21}", "column 27: there are more than 20 levels"),
        ("model: " + "[" * 50_000, "there are more than 20 levels"),
        ("model: " + "{a: " * 20_000, "there are more than 20 levels"),
        (f"model: [{'a,' * 49_000}]", "line 1, column 3999: there are too many values"),
        ("model: cifar10\nmax_batch: 010", "line 2, column 12: '010' is not a decimal number"),
        ("model: cifar10\nmax_batch: 1:30", "'1:30' is not a decimal number"),
        ("model: cifar10\nmax_batch: 0x10", "'0x10' is not a decimal number"),
        (f"model: cifar10\nmax_batch: {'9' * 5000}", "is not a decimal number of at most 18 digits"),
        ("model: =", "could not determine a constructor"),
        ('model: "\\ud800"', "model: "),
        ('model: "a\\0b"', "model: the text has characters that cannot be printed"),
        ('model: "a\\nb"', "model: the text has characters that cannot be printed"),
        ("model: ''", "model: String should have at least 1 character"),
        (f"model: {'a' * 1001}", "model: String should have at most 1000 characters"),
        (f"model: cifar10\n{'a' * 1001}: 1", "unknown field 'aaaa"),
        ("max_batch: 1", "model: Field required"),
        ("model: 5", "model: Input should be a valid string"),
        ("model: null", "model: Input should be a valid string"),
        ("model: [cifar10]", "model: Input should be a valid string"),
        ("model: 2026-12-01", "the model '2026-12-01' is neither a classifier nor a file in"),
        ("model: 2026-99-99", "the model '2026-99-99' is neither a classifier nor a file in"),
        ("model: auto", "the model auto depends on the machine"),
        ("model: resnet5O", "neither a classifier nor a file in {folder}; did you mean 'resnet50'?"),
        ("model: missing.onnx", "neither a classifier nor a file in {folder}"),
        ("model: .", "{folder} cannot be read: Not a regular file"),
        ("model: resnet50\nweights: IMAGENET1K_V9", "nor published ones of resnet50 (IMAGENET1K_V1, "),
        ("model: cifar10\nweights: a.pth", "{folder}/a.pth cannot be read: No such file"),
        (f"model: cifar10\nlabels: {'a' * 300}", "cannot be read: File name too long"),
        ("model: cifar10\nlabels: no.txt", "{folder}/no.txt cannot be read: No such file"),
        ("model: cifar10\nlabels: {a: b}", "labels: Input should be a valid string"),
        ("model: cifar10\nmax_bach: 1", "unknown field 'max_bach'; did you mean 'max_batch'?"),
        ("model: cifar10\nport: 1", "unknown field 'port'"),
        ("model: cifar10\nmax_batch: 0", "max_batch: Input should be greater than or equal to 1"),
        ("model: cifar10\nmax_batch: 4097", "max_batch: Input should be less than or equal to 4096"),
        ("model: cifar10\nmax_batch: true", "max_batch: Input should be a valid integer"),
        ("model: cifar10\nmax_batch: '16'", "max_batch: Input should be a valid integer"),
        ("model: cifar10\nmax_batch: 1.5", "max_batch: Input should be a valid integer"),
        ("model: cifar10\nmax_wait_ms: .nan", "line 2, column 14: '.nan' is not a decimal number"),
        ("model: cifar10\nmax_queue_wait_s: -.inf", "'-.inf' is not a decimal number"),
        ("model: cifar10\nmax_wait_ms: 1:30.5", "'1:30.5' is not a decimal number"),
        (f"model: cifar10\nmax_wait_ms: 1{':59' * 200}.5", "is not a decimal number"),
        ("model: cifar10\nmax_wait_ms: 1.0e+400", "'1.0e+400' is not a decimal number"),
        ("model: cifar10\nmax_queue_wait_s: 0", "max_queue_wait_s: Input should be greater than 0"),
        ("model: cifar10\nstreams_per_device: 65", "streams_per_device: Input should be less than"),
        ("model: cifar10\nprecision: fp8", "precision: Input should be 'auto', 'fp32'"),
        ("model: cifar10\nprecision: no", "precision: Input should be 'auto', 'fp32'"),
        ("model: cifar10\nruntime: jax", "runtime: Input should be 'auto', 'torch'"),
        ("model: cifar10\nweights_sha256: xyz", "weights_sha256: String should match pattern"),
        ("model: cifar10\nweights_sha256: 12345678", "weights_sha256: Input should be a valid string"),
        ("model: cifar10\npreprocessing: 5", "preprocessing: the value is neither a mapping nor the name"),
        ("model: cifar10\npreprocessing: {reszie: 5}", "unknown field 'reszie'; did you mean 'resize'?"),
        ("model: cifar10\npreprocessing: {crop: wide}", "crop: Input should be a valid integer"),
        ("model: cifar10\npreprocessing: {crop: 5000}", "need 0 < crop <= resize <= 4096"),
        ("model: cifar10\npreprocessing: {crop: .nan}", "'.nan' is not a decimal number"),
        ("model: cifar10\npreprocessing: {std: [0.0, 1, 1]}", "mean and std must be finite"),
        ("model: cifar10\npreprocessing: no.json", "{folder}/no.json cannot be read: No such file"),
    ],
)
def test_an_invalid_model_yaml_is_reported(root: Path, text: str, reason: str) -> None:
    """The message has the path of the file and what is wrong in it."""
    folder = add_version(root, "1", text)
    message = read_error(root)
    assert message.startswith(str(folder / "model.yaml"))
    assert reason.format(folder=folder) in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"model: \xff", "is not a text file in UTF-8"),
        ("model: cifar10".encode("utf-16"), "is not a text file in UTF-8"),
        (b"#" * (MAX_BYTES + 1), "is larger than 100,000 bytes"),
    ],
    ids=["Latin-1", "UTF-16", "large"],
)
def test_model_yaml_is_a_short_text_in_utf8(root: Path, version: Path, content: bytes, reason: str) -> None:
    (version / "model.yaml").write_bytes(content)
    assert reason in read_error(root)


_FIELDS = st.sampled_from(
    [*ModelOptions.model_fields, "weights", "labels", "preprocessing", "weights_sha256"]
)
_VALUES = st.sampled_from(
    [
        *(
            "1",
            "-0",
            "010",
            "0x1",
            "1_0",
            "1:30",
            "1:30.5",
            "9" * 30,
            "1.5",
            "1.",
            "1e5",
            "1.0e+999",
            ".nan",
            "-.inf",
        ),
        *(
            "auto",
            "cpu",
            "TORCH",
            "bf16",
            "no",
            "~",
            "null",
            "true",
            "=",
            "<<",
            "''",
            "'a",
            '"\\ud800"',
            '"\\x00"',
        ),
        *(
            "[1, [2]]",
            "{crop: 8}",
            "{crop: 8, crop: 9}",
            "{crop: .nan}",
            "{1: 2}",
            "{std: [1, 2, 3.0]}",
            "[",
            "{a",
        ),
        *(
            "2026-01-01",
            "2026-99-99",
            "2026-01-01 25:00:00",
            "!!binary x",
            "!x y",
            "&a b",
            "*a",
            "|\n a",
            ">-\n a",
        ),
        *(
            "../../..",
            "/",
            "/dev/zero",
            "a.onnx",
            "http://a/b",
            "IMAGENET1K_V1",
            "01234567",
            "'01234567'",
            "%",
            "@",
        ),
    ]
)
_LINES = st.tuples(_FIELDS, _VALUES).map(": ".join) | st.text(max_size=20)


@settings(max_examples=100, deadline=None)
@given(st.lists(_LINES, max_size=4).map("\n".join))
def test_any_model_yaml_is_a_version_or_an_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """The options of a version are always within their bounds."""
    root = tmp_path_factory.mktemp("models")
    folder = add_version(root, "1")
    (folder / "model.yaml").write_bytes(f"model: resnet18\n{text}".encode("utf-8", "surrogatepass"))
    try:
        [config] = read(root).versions
    except ModelLoadError:
        assert str(folder) in read_error(root)
    else:
        assert config.source.name == "resnet18"
        assert ModelOptions(**config.options.model_dump()) == config.options
        json.dumps(config.options.model_dump(), allow_nan=False)


def test_references_that_expand_to_gigabytes_are_rejected(root: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 12)]
    add_version(root, "1", "\n".join(lines))
    assert "anchors and aliases are not supported" in read_error(root)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "has neither model.yaml nor a file that ends in .safetensors or .onnx"),
        (["labels.txt", "a.bin"], "has neither model.yaml nor a file that ends in .safetensors or .onnx"),
        (["a.safetensors", "b.safetensors"], "has 2 models, such as 'a.safetensors' and 'b.safetensors'"),
        (["a.safetensors", "a.onnx", "a.pt"], "has 3 models, such as 'a.onnx' and 'a.pt'"),
        (["a.pth"], "weights without their network: name both in model.yaml"),
        (["a.pt"], "weights without their network: name both in model.yaml"),
        (["a\nb.onnx"], r"'a\nb.onnx', whose name has characters that cannot be printed"),
        (["a\nb.onnx", "c\nd.onnx"], r"has 2 models, such as 'a\nb.onnx'"),
        (["a.onnx", "model.yml"], "has 'model.yml', and the only YAML file here is 'model.yaml'"),
        (["a.onnx", "Model.YAML"], "has 'Model.YAML', and the only YAML file here is 'model.yaml'"),
        (["a.onnx", "x\ny.yaml"], r"has 'x\ny.yaml', and the only YAML file"),
    ],
)
def test_an_ambiguous_or_empty_version_is_reported(
    root: Path, version: Path, files: list[str], reason: str
) -> None:
    for file in files:
        (version / file).touch()
    assert reason in read_error(root)


def test_a_name_that_is_not_unicode_is_reported(root: Path, version: Path) -> None:
    """Such a name could not be part of a response."""
    Path(os.fsdecode(os.fsencode(version) + b"/\xff.onnx")).touch()
    assert r"'\udcff.onnx', whose name has characters" in read_error(root)
    Path(os.fsdecode(os.fsencode(root) + b"/\xff")).mkdir()
    with pytest.raises(ModelLoadError, match=r"has the folder '\\udcff'"):
        ModelRepository(root).names()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("1/model.yaml", None),
        ("traffic.yaml", None),
        ("1/a.onnx", None),
        ("1/a.safetensors", None),
        ("1/labels", "model: cifar10\nlabels: labels"),
        ("1/weights", "model: resnet50\nweights: weights"),
        ("1/own.json", "model: cifar10\npreprocessing: own.json"),
        ("1/own.onnx", "model: own.onnx"),
    ],
)
@pytest.mark.parametrize("kind", ["named pipe", "folder", "broken link", "loop"])
def test_what_is_not_a_file_is_reported(root: Path, path: str, text: str | None, kind: str) -> None:
    """A named pipe is never opened, because that would block."""
    add_version(root, "1", text)
    if path == "traffic.yaml":
        (root / NAME / "1" / "a.onnx").touch()
    create_other(root / NAME / path, kind)
    message = read_error(root)
    assert str(root / NAME / path) in message
    assert ("No such file" if kind == "broken link" else "symbolic" if kind == "loop" else "Not a") in message


def create_other(path: Path, kind: str) -> None:
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("missing" if kind == "broken link" else path.name)


def test_a_named_pipe_beside_an_onnx_file_is_reported(root: Path, version: Path) -> None:
    """The loader would read it as the labels."""
    (version / "a.onnx").touch()
    os.mkfifo(version / "a.json")
    assert f"{version / 'a.json'} cannot be read: Not a regular file" in read_error(root)


@pytest.mark.parametrize("kind", ["named pipe", "file", "broken link", "loop"])
def test_what_is_not_a_version_folder_is_reported(root: Path, version: Path, kind: str) -> None:
    (version / "a.onnx").touch()
    path = root / NAME / "2"
    path.touch() if kind == "file" else create_other(path, kind)
    assert f"{path} cannot be read: " in read_error(root)


@pytest.mark.parametrize(
    "name", ["0", "01", "-1", "1.0", "v1", "a\nb", "1\n", "\u0661", "1" * 19, "latest", "1 "]
)
def test_a_folder_that_is_not_a_version_is_reported(root: Path, version: Path, name: str) -> None:
    (version / "a.onnx").touch()
    (root / NAME / name).mkdir()
    assert f"{root / NAME} has the folder {name!r}, and a version is a positive integer" in read_error(root)


def test_a_model_without_versions_is_reported(root: Path) -> None:
    (root / NAME / ".1").mkdir(parents=True)
    assert f"{root / NAME} has no version" in read_error(root)


def test_hidden_entries_and_other_files_are_ignored(root: Path, version: Path) -> None:
    """Editors, Git and file systems leave them."""
    (version / "a.onnx").touch()
    for folder in (root, root / NAME):
        (folder / ".git").mkdir()
        (folder / "lost+found").mkdir()
        (folder / "README.md").touch()
        (folder / ".traffic.yaml.swp").touch()
    assert ModelRepository(root).names() == [NAME]
    assert read_source(root) == ModelSource(str(version / "a.onnx"))


def test_names_are_sorted_and_those_of_all_folders(root: Path) -> None:
    """Also of those that cannot be read as a model, so that the operator learns about them."""
    for name in ("b", "a", "A-1_.x", "0", "x" * 100):
        (root / name).mkdir()
    (root / "link").symlink_to("b")
    (root / "broken").symlink_to("missing")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    names = ModelRepository(root).names()
    assert names == ["0", "A-1_.x", "a", "b", "broken", "link", "loop", "x" * 100]
    assert "broken cannot be read: No such file" in read_error(root, "broken")
    assert "loop cannot be read: Too many levels of symbolic links" in read_error(root, "loop")


@pytest.mark.parametrize("name", ["my model", "a\nb", "x" * 101, "caf\u00e9", "a+b"])
def test_a_folder_with_an_invalid_name_is_reported(root: Path, name: str) -> None:
    (root / name).mkdir()
    with pytest.raises(ModelLoadError) as caught:
        ModelRepository(root).names()
    assert f"{root} has the folder {name!r}" in str(caught.value)
    assert f"{root} has the folder {name!r}" in read_error(root, name)


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "/", "/etc", "../models", f"{NAME}/", f"{NAME}/1", f"./{NAME}", f"{NAME}\0", "\0"),
        *("other", "PETS", ".git", "README.md", "pipe", "x" * 100_000, "\ud800", "a\nb", "*"),
    ],
)
def test_an_unknown_name_is_not_found(root: Path, version: Path, name: str) -> None:
    """Whatever a client sends, only the folders of the repository are read; the message has no path."""
    (version / "a.onnx").touch()
    (root / ".git").mkdir()
    (root / "README.md").touch()
    os.mkfifo(root / "pipe")
    with pytest.raises(ModelNotFound) as caught:
        ModelRepository(root).read(name)
    message = str(caught.value)
    assert message.startswith("unknown model ")
    assert message.isprintable()
    assert len(message) < 100
    assert str(root) not in message


@pytest.mark.parametrize("kind", ["missing", "file", "broken link", "named pipe", "NUL"])
def test_a_repository_that_cannot_be_read_is_reported(tmp_path: Path, kind: str) -> None:
    """A volume that is not mounted is not an empty repository."""
    path = tmp_path / ("models\0" if kind == "NUL" else "models")
    if kind == "file":
        path.touch()
    elif kind in ("broken link", "named pipe"):
        create_other(path, kind)
    with pytest.raises(ModelLoadError, match="cannot be read"):
        ModelRepository(path).names()
    with pytest.raises(ModelLoadError, match="cannot be read"):
        ModelRepository(path).read(NAME)


def test_an_empty_repository_has_no_names(root: Path) -> None:
    assert ModelRepository(root).names() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("path", [".", NAME, f"{NAME}/1", f"{NAME}/1/model.yaml"])
def test_missing_permissions_are_reported(root: Path, path: str) -> None:
    add_version(root, "1", "model: cifar10")
    mode = (root / path).stat().st_mode
    (root / path).chmod(0)
    try:
        assert f"{root / path} cannot be read: Permission denied" in read_error(root)
    finally:
        (root / path).chmod(mode)


def test_a_config_map_of_kubernetes_is_read(root: Path) -> None:
    """It has hidden folders, and links through them, which are replaced at once."""
    mount = root / NAME / "1"
    mount.mkdir(parents=True)
    for revision, batch in (("..2026_1", 1), ("..2026_2", 2)):
        (mount / revision).mkdir()
        (mount / revision / "model.yaml").write_text(f"model: cifar10\nlabels: a.txt\nmax_batch: {batch}")
        (mount / revision / "a.txt").touch()
    (mount / "..data").symlink_to("..2026_1")
    for name in ("model.yaml", "a.txt"):
        (mount / name).symlink_to(f"..data/{name}")
    assert read(root).versions[0].options.max_batch == 1
    (mount / "..next").symlink_to("..2026_2")
    (mount / "..next").rename(mount / "..data")
    assert read(root).versions[0].options.max_batch == 2
    assert read_source(root).labels == mount / "a.txt"


def test_folders_may_be_links(tmp_path: Path, root: Path) -> None:
    store = tmp_path / "store"
    (store / "f00d").mkdir(parents=True)
    (store / "f00d" / "a.onnx").touch()
    (store / NAME).mkdir()
    (store / NAME / "3").symlink_to(store / "f00d")
    (root / NAME).symlink_to(store / NAME)
    assert ModelRepository(root).names() == [NAME]
    assert read_source(root) == ModelSource(str(root / NAME / "3" / "a.onnx"))


def write_traffic(root: Path, text: str) -> Path:
    """Create three versions and traffic.yaml."""
    for number in ("1", "2", "10"):
        add_version(root, number, "model: cifar10")
    path = root / NAME / "traffic.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", TrafficSplit()),
        ("version: 1", TrafficSplit("1")),
        ("version: '1'", TrafficSplit("1")),
        ("canary: {version: 2, percent: 10}", TrafficSplit("10", "2", 10)),
        ("canary: {version: 10, percent: 0.5}", TrafficSplit("2", "10", 0.5)),
        ("shadow: {version: '10', percent: 100}", TrafficSplit("2", shadow="10", shadow_percent=100)),
        (
            "canary: {version: 2, percent: 1}\nshadow: {version: 10, percent: 2}",
            TrafficSplit("1", "2", 1, "10", 2),
        ),
        (
            "version: 1\ncanary: {version: 10, percent: 1}\nshadow: {version: 10, percent: 2}",
            TrafficSplit("1", "10", 1, "10", 2),
        ),
    ],
)
def test_traffic_yaml_splits_requests(root: Path, text: str, expected: TrafficSplit) -> None:
    """By default, the latest version that is neither canary nor shadow answers."""
    write_traffic(root, text)
    assert read(root).traffic == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a mapping"),
        ("version: 3", "the version '3' does not exist; the versions are 1, 2, 10"),
        ("version: '01'", "the version '01' does not exist"),
        (f"version: '{'1' * 2000}'", "the version '1111"),
        ('version: "\\n"', r"the version '\n' does not exist"),
        ('version: "\\ud800"', r"the version '\ud800' does not exist"),
        ("version: 1.0", "version: the value is not the number of a version"),
        ("version: true", "version: the value is not the number of a version"),
        ("canary: {version: 3, percent: 10}", "the version '3' does not exist"),
        ("version: 1\nshadow: {version: 3, percent: 10}", "the version '3' does not exist"),
        ("version: 2\ncanary: {version: 2, percent: 10}", "the version '2' answers requests"),
        ("version: 2\nshadow: {version: '2', percent: 10}", "the version '2' answers requests"),
        ("canary: {version: 2, percent: 0}", "canary.percent: Input should be greater than 0"),
        ("canary: {version: 2, percent: 101}", "canary.percent: Input should be less than or equal to 100"),
        ("canary: {version: 2, percent: .nan}", "'.nan' is not a decimal number"),
        ("canary: {version: 2, percent: 10%}", "canary.percent: Input should be a valid number"),
        ("canary: {version: 2, percent: true}", "canary.percent: Input should be a valid number"),
        ("canary: {version: 2}", "canary.percent: Field required"),
        ("canary: {percent: 2}", "canary.version: Field required"),
        ("canary: 2", "canary: the value is not a mapping such as {version: 2, percent: 10}"),
        ("canary: {version: 2, precent: 10}", "unknown field 'precent'; did you mean 'percent'?"),
        ("cannary: {version: 2, percent: 10}", "unknown field 'cannary'; did you mean"),
        ("version: 1\nversion: 2", "line 2, column 1: the key 'version' occurs twice"),
    ],
)
def test_an_invalid_traffic_yaml_is_reported(root: Path, text: str, reason: str) -> None:
    path = write_traffic(root, text)
    message = read_error(root)
    assert message.startswith(str(path))
    assert reason in message


def test_a_version_must_be_left_to_answer(root: Path, version: Path) -> None:
    (version / "a.onnx").touch()
    (root / NAME / "traffic.yaml").write_text("canary: {version: 1, percent: 10}")
    assert "all versions are canary or shadow" in read_error(root)


@pytest.mark.parametrize("file", ["traffic.yml", "trafic.yaml", "model.yaml"])
def test_a_misspelled_traffic_yaml_is_reported(root: Path, version: Path, file: str) -> None:
    (version / "a.onnx").touch()
    (root / NAME / file).touch()
    assert f"has {file!r}, and the only YAML file here is 'traffic.yaml'" in read_error(root)


def test_changes_are_seen_by_the_next_call(root: Path) -> None:
    add_version(root, "1", "model: cifar10")
    repository = ModelRepository(root)
    assert len(repository.read(NAME).versions) == 1
    add_version(root, "2", "model: resnet18")
    assert [config.key.version for config in repository.read(NAME).versions] == ["1", "2"]
    (root / NAME).rename(root / "other")
    assert repository.names() == ["other"]
    with pytest.raises(ModelNotFound):
        repository.read(NAME)


def test_options_are_immutable_and_have_the_bounds_of_the_settings() -> None:
    options = ModelOptions(max_batch=4096)
    with pytest.raises(ValueError, match="frozen"):
        options.max_batch = 1  # type: ignore[misc]
    for model in (ModelOptions, Settings):
        with pytest.raises(ValueError, match="less than or equal to 4096"):
            model(max_batch=4097)
