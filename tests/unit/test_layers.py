"""Each floor imports only what lies below it; the core imports nothing that is not pure."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "llava_grpc"
FLOORS = [
    {"errors"},
    {"config"},
    {"logs"},
    {"core"},
    {"plugins"},
    {"sim"},
    {"demo"},
    {"engines"},
    {"v1"},
    {"rpc"},
    {"membership"},
    {"worker", "controller"},
    {"client"},
    {"gateway"},
    {"testing"},
    {"cli"},
    {"__main__", "__init__"},
]
HEIGHT = {name: height for height, names in enumerate(FLOORS) for name in names}
PURE = {
    "__future__",
    "abc",
    "collections",
    "dataclasses",
    "enum",
    "heapq",
    "itertools",
    "llava_grpc",
    "math",
    "numpy",
    "random",
    "re",
    "types",
    "typing",
}


def imports(path: Path) -> set[str]:
    """Dotted names that the module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def floor_of(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def test_every_module_stands_on_a_floor():
    assert {floor_of(path) for path in SOURCE.rglob("*.py")} <= set(HEIGHT)


def test_no_floor_imports_what_lies_above_or_beside_it():
    wrong = []
    for path in SOURCE.rglob("*.py"):
        here = floor_of(path)
        for name in imports(path):
            parts = name.split(".")
            if parts[0] != "llava_grpc" or len(parts) == 1 or parts[1] not in HEIGHT:
                continue
            there = parts[1]
            if there != here and HEIGHT[there] >= HEIGHT[here]:
                wrong.append(f"{path.relative_to(SOURCE)} imports {name}")
    assert wrong == []


def test_the_core_is_pure():
    for path in (SOURCE / "core").glob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= PURE, path.name


def test_only_the_edge_sees_both_pb2_and_core():
    both = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if any(name.endswith("inference_pb2") for name in imports(path))
        and any(name.startswith("llava_grpc.core.prompt") for name in imports(path))
    }
    assert both <= {"rpc/convert.py", "rpc/demand.py", "controller/inference.py"}, (
        "the controller checks the request's id, no more"
    )
