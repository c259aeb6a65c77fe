"""The form of the code: which layer and which module may import what, and how modules look."""

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["engine/reunite", "transport/reunite_transport", "simulations/reunite_simulations"]
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
ENGINE = [path for path in MODULES if path.is_relative_to(ROOT / "engine")]
TEST_MODULES = sorted((ROOT / "tests").rglob("*.py"))

# Nine in ten modules of the code bases that we admire are shorter.
MODULE_LINES_MAX = 570

# Imports go one way: simulations -> transport -> engine.
FORBIDDEN_BY_LAYER = {
    "engine": {"reunite_transport", "reunite_simulations"},
    "transport": {"reunite_simulations"},
    "simulations": set[str](),
}

# A package from outside is imported by these modules and by no other.
TRANSPORT = "transport/reunite_transport"
RELAY = f"{TRANSPORT}/relay"
SIMULATE = "simulations/reunite_simulations/command.py"
EDGES = {
    # The client's and the relay's sockets; the demo in a browser is a server of its own.
    "aiohttp": [f"{TRANSPORT}/{n}.py" for n in ("websocket", "demo_web", "relay/server")],
    "asyncpg": [f"{RELAY}/postgres_*.py", f"{RELAY}/embedded.py"],
    "msgpack": [
        "engine/reunite/cells/counter.py",
        "engine/reunite/cells/set.py",
        "engine/reunite/document.py",
        "engine/reunite/keys.py",
        "engine/reunite/payload.py",
        "transport/reunite_transport/codec.py",
        "transport/reunite_transport/reader.py",
    ],
    "prometheus_client": [f"{RELAY}/metrics.py"],
    "pycrdt": [
        "engine/reunite/cells/yjs.py",
        "transport/reunite_transport/relay/trial_process.py",
    ],
    "rich": [SIMULATE, *(f"{TRANSPORT}/{n}.py" for n in ("cli", "console", "demo", "watch"))],
    "sqlalchemy": [
        # For types alone, which are not imported when it runs.
        "engine/reunite/blocking.py",
        "engine/reunite/database.py",
        "engine/reunite/watching.py",
        # To use it.
        "engine/reunite/models.py",
        "engine/reunite/orm.py",
        "engine/reunite/sessions.py",
        "engine/reunite/sqlalchemy_dialect.py",
        "engine/reunite/sqlalchemy_types.py",
        f"{RELAY}/postgres_schema.py",
    ],
    "typer": [
        SIMULATE,
        *(f"{TRANSPORT}/{n}.py" for n in ("cli", "console", "relay_commands", "watch")),
    ],
}

# Time, chance and sockets are passed into the engine; these modules pass them.
ENGINE_EDGES = ["engine/reunite/driver.py", "engine/reunite/database.py"]
IMPURE_MODULES = {"random", "secrets", "socket"}
IMPURE_NAMES = {
    "datetime.date.today",
    "datetime.datetime.now",
    "datetime.datetime.utcnow",
    "os.urandom",
    "time.monotonic",
    "time.monotonic_ns",
    "time.time",
    "time.time_ns",
    "uuid.uuid1",
    "uuid.uuid4",
}

# Names that say nothing about what a module owns.
EMPTY_NAMES = re.compile(r"(^|_)(utils?|helpers?|common|managers?|core|misc)(_|$)")

# A path of one machine: nobody else has it.
MACHINE_PATH = re.compile(r"(?<![\w.~:/])/(home|Users|root|work|opt|mnt|media)/\w")
TEXT_FOLDERS = [".ci", "benchmarks", "docs", "engine", "examples", "simulations", "tests"]
TEXT_FOLDERS += ["transport"]
TEXT_SUFFIXES = {"", ".cfg", ".json", ".md", ".py", ".sql", ".toml", ".txt", ".yaml", ".yml"}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=name(path))


def imported_names(module: ast.Module) -> dict[str, str]:
    """What each imported name stands for, by the dotted name that the module uses for it."""
    origin_by_name: dict[str, str] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            for alias in node.names:
                origin_by_name[alias.asname or alias.name] = alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            for alias in node.names:
                origin_by_name[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return origin_by_name


def imported_packages(module: ast.Module) -> set[str]:
    return {origin.split(".")[0] for origin in imported_names(module).values()}


def used_names(module: ast.Module) -> set[str]:
    """Every dotted name in the module, spelled as it was imported: `now()` is `time.time`."""
    origin_by_name = imported_names(module)
    used = set(origin_by_name.values())
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            used.add(f"{origin_by_name.get(first, first)}.{rest}")
    return used


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_go_one_way(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    assert not imported_packages(tree(path)) & FORBIDDEN_BY_LAYER[layer]


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_package_from_outside_is_imported_at_its_edge_only(path: Path) -> None:
    strays = {
        package
        for package in imported_packages(tree(path)) & EDGES.keys()
        if not any(fnmatch(name(path), edge) for edge in EDGES[package])
    }
    assert not strays, f"add {name(path)} to EDGES, or move the use of {strays} to its edge"


@pytest.mark.parametrize("path", ENGINE, ids=name)
def test_time_chance_and_sockets_are_passed_into_the_engine(path: Path) -> None:
    if name(path) in ENGINE_EDGES:
        return
    module = tree(path)
    assert not imported_packages(module) & IMPURE_MODULES
    assert not used_names(module) & IMPURE_NAMES


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_says_what_it_owns(path: Path) -> None:
    assert ast.get_docstring(tree(path)), "the docstring of a module says what it owns"
    for part in path.relative_to(ROOT).with_suffix("").parts:
        assert not EMPTY_NAMES.search(part), f"{part} names nothing: name the noun it owns"


@pytest.mark.parametrize("path", MODULES + TEST_MODULES, ids=name)
def test_a_module_is_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MODULE_LINES_MAX


def test_no_file_names_a_path_of_one_machine() -> None:
    texts = [path for path in ROOT.iterdir() if path.suffix in TEXT_SUFFIXES]
    texts += [path for folder in TEXT_FOLDERS for path in (ROOT / folder).rglob("*")]
    found = [
        f"{name(path)}:{number}: {line.strip()}"
        for path in sorted(texts)
        if path.is_file() and path.suffix in TEXT_SUFFIXES and path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not found


def test_the_rules_see_what_they_forbid() -> None:
    module = ast.parse("import datetime as d\nfrom time import time as now\nd.datetime.now()")
    assert {"time.time", "datetime.datetime.now"} <= used_names(module)
    assert imported_packages(ast.parse("from msgpack.ext import Timestamp")) == {"msgpack"}
    assert MACHINE_PATH.search("see /ho" + "me/someone/x")
    assert not MACHINE_PATH.search("docs/work/plan and https://example.org/home/x")
    assert EMPTY_NAMES.search("row_utils")
    assert not EMPTY_NAMES.search("score")
