"""Generate the Python modules of the gRPC protocol from its definition; `make protocol` runs this script.

    python deploy/generate_protocol.py [FOLDER]

FOLDER replaces the source root, `service`.
"""

import sys
from pathlib import Path

from grpc_tools import protoc

SOURCE_ROOT = Path(__file__).resolve().parent.parent / "service"
DEFINITION = Path("resnet_service/server/rpc/protocol/open_inference.proto")


def generate(folder: Path) -> None:
    """Write the modules below `folder`. Raises SystemExit if the definition is invalid."""
    options = [f"--proto_path={SOURCE_ROOT}", f"--python_out={folder}", f"--pyi_out={folder}"]
    if protoc.main(["protoc", *options, str(DEFINITION)]):
        sys.exit(1)
    module = (folder / DEFINITION).with_name(f"{DEFINITION.stem}_pb2.py")
    code = module.read_text(encoding="utf-8")
    # A pool of its own: clients of the protocol, such as tritonclient, add messages with the same names to
    # the default pool of the process, which allows each name once.
    shared, own = "_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()"
    if code.count(shared) != 1:
        sys.exit(f"expected one {shared} in {module}: adapt {Path(__file__).name} to this version of protoc")
    module.write_text(code.replace(shared, own), encoding="utf-8")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE_ROOT)
