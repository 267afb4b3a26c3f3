"""Print the shape of a checkout: its packages, what they import of each other, and where its code is long.

    uv run python experiment/bench/shape.py [CHECKOUT]

The checkout is only read, never imported, so that one version of this script measures any commit. What it counts:

- A part of the house is a package of `rlm_dspy`, with all its folders, or a file at the root of `rlm_dspy`.
- An import is a pair of modules: the one that imports and the one that is imported. Imports inside functions and
  under `if TYPE_CHECKING` count. A name that a package re-exports is an import of the package's `__init__`.
- A part's floor is the length of the longest chain of imports below it. Parts in one circle share a floor.
- A circle is a set of modules, or of parts, that all import each other, directly or through others. Imports of an
  `__init__` are left out of circles of modules, and listed if a module imports the `__init__` it is named by.
- Code is every line with a token that is neither a comment nor part of a string that stands alone (a docstring).
- A parameter counts as loose if its annotation is exactly `Any`, `object` or `dict[str, Any]`. Counted are
  annotated parameters without those of `*args`, `**kwargs` and those before `/`.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import tokenize
import tomllib
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

PACKAGE = "rlm_dspy"
FOLDERS = {PACKAGE: PACKAGE, "rlm_dspy.interpreters": "interpreters", "rlm_dspy.signatures": "signatures"}
"""Where packages are if `pyproject.toml` does not say so."""
LOOSE = ("Any", "object", "dict[str, Any]")
LONGEST = 15
LONG_MODULE = 400
TEXT = {".css", ".html", ".j2", ".jinja", ".jinja2", ".svg", ".txt"}
"""Files of a package that are written by hand, but are not Python."""
_NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}

Graph = dict[str, set[str]]


@dataclass(frozen=True)
class Function:
    """A function of the code, with its decorators left out.

    Attributes:
        name: The dotted name of its module, then its own.
        lines: All its lines, docstring included.
        code: Those that are code.
    """

    name: str
    lines: int
    code: int


@dataclass(frozen=True)
class Module:
    """A file of Python.

    Attributes:
        name: Its dotted name; that of the package for an `__init__`.
        path: The file.
    """

    name: str
    path: Path

    @cached_property
    def source(self) -> str:
        """Its text."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.source)

    @cached_property
    def code(self) -> frozenset[int]:
        """The numbers of the lines that are code."""
        tokens = tokenize.generate_tokens(io.StringIO(self.source).readline)
        held = [range(token.start[0], token.end[0] + 1) for token in tokens if token.type not in _NO_CODE]
        documented = [
            range(node.lineno, (node.end_lineno or node.lineno) + 1)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ]
        return frozenset(line for lines in held for line in lines) - {
            line for lines in documented for line in lines
        }

    @property
    def lines(self) -> int:
        """How many lines it has."""
        return len(self.source.splitlines())

    @property
    def is_package(self) -> bool:
        """Whether it is the `__init__` of a package."""
        return self.path.stem == "__init__"

    @property
    def package(self) -> str:
        """The package that its relative imports start from."""
        return self.name if self.is_package else self.name.rpartition(".")[0]

    @property
    def part(self) -> str:
        """The part of the house that it belongs to."""
        return f"{self.name}.__init__".split(".")[1]

    def functions(self) -> Iterator[Function]:
        """Yield its functions and methods, those inside others too."""
        waiting: list[tuple[str, ast.AST]] = [(self.name, self.tree)]
        while waiting:
            above, parent = waiting.pop()
            for node in ast.iter_child_nodes(parent):
                named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
                name = f"{above}.{node.name}" if isinstance(node, named) else above
                waiting.append((name, node))
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    span = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                    yield Function(name, len(span), len(self.code.intersection(span)))

    def annotations(self) -> Iterator[str]:
        """Yield the annotations of its functions' parameters."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for parameter in [*node.args.args, *node.args.kwonlyargs]:
                    if parameter.annotation is not None:
                        yield ast.unparse(parameter.annotation)


@dataclass(frozen=True)
class Imports:
    """What modules import of each other.

    Attributes:
        at_run_time: The modules that each module imports when it runs.
        all: Those, and what it imports for type checkers alone.
    """

    at_run_time: Graph
    all: Graph


def folders_of(checkout: Path) -> dict[str, Path]:
    """Return the folders that hold packages, by package; folders inside another of them are left out."""
    settings = checkout / "pyproject.toml"
    project = tomllib.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {}
    told = project.get("tool", {}).get("setuptools", {}).get("package-dir") or FOLDERS
    folders = {package: checkout / folder for package, folder in told.items()}
    return {
        package: folder
        for package, folder in folders.items()
        if not any(other in folder.parents for other in folders.values()) and folder.is_dir()
    }


def files_of(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and of those inside it; what is reached by a link is left out."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if not path.is_symlink():
                yield path


def modules_of(checkout: Path) -> dict[str, Module]:
    """Return the modules of a checkout's packages by dotted name."""
    found: dict[str, Module] = {}
    for package, folder in folders_of(checkout).items():
        for path in files_of(folder):
            if path.suffix == ".py":
                inner = path.relative_to(folder).with_suffix("").parts
                name = ".".join((package, *(part for part in inner if part != "__init__")))
                found[name] = Module(name, path)
    return found


def imports_of(modules: Mapping[str, Module]) -> Imports:
    """Return what modules import of each other."""
    at_run_time: Graph = {name: set() for name in modules}
    everything: Graph = {name: set() for name in modules}
    for name, module in modules.items():
        for node, is_typing in statements(module.tree, is_typing=False):
            for target in targets(node, module, modules):
                everything[name].add(target)
                if not is_typing:
                    at_run_time[name].add(target)
    return Imports(at_run_time, everything)


def statements(tree: ast.AST, *, is_typing: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Yield each node, and whether it stands under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        yield node, is_typing
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from statements(ast.Module(node.body, []), is_typing=True)
            yield from statements(ast.Module(node.orelse, []), is_typing=is_typing)
        else:
            yield from statements(node, is_typing=is_typing)


def targets(node: ast.AST, module: Module, modules: Mapping[str, Module]) -> set[str]:
    """Return the modules that a statement imports, without the one it stands in."""
    named: list[Sequence[str]] = []
    if isinstance(node, ast.Import):
        named = [[alias.name] for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        above = module.package.split(".")[: -node.level + 1 or None] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        named = [[f"{base}.{alias.name}", base] for alias in node.names]
    first = [next((name for name in names if name in modules and name != module.name), None) for names in named]
    return {name for name in first if name}


def circles(graph: Graph) -> list[list[str]]:
    """Return the sets of two or more that reach each other, each sorted."""
    reached = {name: reach(graph, name) for name in graph}
    found = {frozenset(other for other in reached[name] if name in reached[other]) for name in graph}
    return sorted((sorted(circle) for circle in found if len(circle) > 1), key=lambda each: (-len(each), each))


def reach(graph: Graph, start: str) -> set[str]:
    """Return what can be reached from a node; the node itself only by a circle."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for name in graph[waiting.pop()] - found:
            found.add(name)
            waiting.append(name)
    return found


def floors(graph: Graph) -> dict[str, int]:
    """Return for each node the length of the longest chain below it; those in one circle share theirs."""
    circle_of = {name: frozenset(circle) for circle in circles(graph) for name in circle}
    known: dict[str, int] = {}

    def floor(name: str) -> int:
        if name not in known:
            together = circle_of.get(name, frozenset([name]))
            below = {other for member in together for other in graph[member]} - together
            known.update(dict.fromkeys(together, max((floor(other) + 1 for other in below), default=0)))
        return known[name]

    return {name: floor(name) for name in graph}


def between_parts(modules: Mapping[str, Module], graph: Graph) -> Counter[tuple[str, str]]:
    """Return how many pairs of modules make each arrow from one part to another."""
    pairs = ((modules[name].part, modules[target].part) for name, found in graph.items() for target in found)
    return Counter(pair for pair in pairs if pair[0] != pair[1])


def inside_circles(modules: Mapping[str, Module], graph: Graph) -> list[list[str]]:
    """Return the circles of modules, in which no `__init__` is counted."""
    plain = {name for name, module in modules.items() if not module.is_package}
    return circles({name: graph[name] & plain for name in plain})


def through_own_package(modules: Mapping[str, Module], graph: Graph) -> list[str]:
    """Return the modules that import the `__init__` of a package they are in, the root's left out."""
    return sorted(
        name
        for name, found in graph.items()
        for target in found
        if name.startswith(f"{target}.") and target != PACKAGE and modules[target].is_package
    )


def draw(modules: Mapping[str, Module]) -> Iterator[str]:
    """Yield the lines that show parts, floors, arrows and circles."""
    imports = imports_of(modules)
    arrows, at_run_time = between_parts(modules, imports.all), between_parts(modules, imports.at_run_time)
    sizes = Counter(module.part for module in modules.values())
    graph: Graph = {part: set() for part in sizes}
    for above, below in arrows:
        graph[above].add(below)
    yield from draw_floors(graph, sizes)
    module_floors = floors(imports.all)
    yield f"\nThe modules alone stand on {max(module_floors.values(), default=0) + 1} floors."
    yield "\n## Arrows: from part to part, with the number of imports (+ those for type checkers alone)\n"
    for part in sorted(graph):
        told = []
        for other in sorted(graph[part]):
            running = at_run_time[part, other]
            told.append(f"{other} {running}" + (f"+{extra}" if (extra := arrows[part, other] - running) else ""))
        if told:
            yield f"{part} -> {', '.join(told)}"
    yield "\n## Circles\n"
    yield from draw_circles(modules, imports, graph)


def draw_floors(graph: Graph, sizes: Counter[str]) -> Iterator[str]:
    """Yield the floors, the topmost first; a part of more than one module is followed by their number."""
    standing: defaultdict[int, list[str]] = defaultdict(list)
    for part, floor in floors(graph).items():
        standing[floor].append(f"{part}/ ({sizes[part]})" if sizes[part] > 1 else part)
    yield f"## Parts: {len(graph)} on {len(standing)} floors, joined by {sum(map(len, graph.values()))} arrows\n"
    for floor in sorted(standing, reverse=True):
        yield f"floor {floor:2}  {', '.join(sorted(standing[floor]))}"


def draw_circles(modules: Mapping[str, Module], imports: Imports, graph: Graph) -> Iterator[str]:
    """Yield the circles between parts and of modules, and the imports of a package from inside."""
    running = circles({name: imports.at_run_time[name] for name in modules})
    yield from listed("between parts", circles(graph))
    yield from listed("of modules", inside_circles(modules, imports.all))
    yield from listed("of modules at run time, `__init__` included", running)
    through = through_own_package(modules, imports.all)
    yield f"modules that import a package they are in: {', '.join(map(short_name, through)) or 'none'}"


def listed(what: str, found: list[list[str]]) -> Iterator[str]:
    """Yield a line for each circle, or one that there is none."""
    yield f"{what}: {len(found) or 'none'}"
    yield from (f"  {len(circle)}: {', '.join(map(short_name, circle))}" for circle in found)


def short_name(name: str) -> str:
    """Return a dotted name without the package that all modules are in."""
    return name.removeprefix(f"{PACKAGE}.")


def folder_table(checkout: Path, modules: Mapping[str, Module]) -> Iterator[str]:
    """Yield a row for each folder of packages, then sums."""
    rows: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for module in modules.values():
        row = rows[str(module.path.parent.relative_to(checkout))]
        for column, value in enumerate((1, module.lines, len(module.code))):
            row[column] += value
    for folder in folders_of(checkout).values():
        for path in files_of(folder):
            if path.suffix in TEXT:
                lines = path.read_text(encoding="utf-8").splitlines()
                rows[str(path.parent.relative_to(checkout))][3] += sum(bool(line.strip()) for line in lines)
    yield "## Folders\n"
    yield "| folder | modules | lines | code | lines of text files |"
    yield "|---|---|---|---|---|"
    for name in sorted(rows):
        yield row_of(name, rows[name])
    tops = sorted({name.split("/")[0] for name in rows})
    sums = {top: summed(row for name, row in rows.items() if name.split("/")[0] == top) for top in tops}
    for top in tops:
        yield row_of(f"**{top}, in all**", sums[top])
    yield row_of("**rlm_dspy and interpreters**", summed(sums[top] for top in tops if top != "signatures"))
    for other in ("tests", "experiment"):
        files = [Module(path.stem, path) for path in files_of(checkout / other) if path.suffix == ".py"]
        yield row_of(
            other, [len(files), sum(file.lines for file in files), sum(len(file.code) for file in files), 0]
        )


def summed(rows: Iterable[list[int]]) -> list[int]:
    """Return the sum of each column."""
    return [sum(column) for column in zip(*rows, strict=True)]


def row_of(name: str, values: list[int]) -> str:
    """Return a row of a table."""
    return f"| {name} | {' | '.join(f'{value:,}' for value in values)} |"


def length_tables(modules: Mapping[str, Module]) -> Iterator[str]:
    """Yield the longest functions and the longest modules."""
    functions = [function for module in modules.values() for function in module.functions()]
    yield f"\n## The longest of {len(functions):,} functions\n"
    yield "| function | lines | code |"
    yield "|---|---|---|"
    for function in sorted(functions, key=lambda each: (-each.lines, each.name))[:LONGEST]:
        yield row_of(short_name(function.name), [function.lines, function.code])
    lengths = sorted(function.lines for function in functions)
    if lengths:
        yield f"\nMedian {lengths[len(lengths) // 2]} lines; longer than 40 lines: {sum(n > 40 for n in lengths)}."
    longest = sorted(modules.values(), key=lambda each: (-each.lines, each.name))
    yield f"\n## The longest modules; over {LONG_MODULE} lines: {sum(m.lines > LONG_MODULE for m in longest)}\n"
    yield "| module | lines | code |"
    yield "|---|---|---|"
    for module in longest[:LONGEST]:
        yield row_of(short_name(module.name), [module.lines, len(module.code)])


def typing_table(modules: Mapping[str, Module]) -> Iterator[str]:
    """Yield how many annotated parameters say nothing of their type."""
    found = Counter(annotation for module in modules.values() for annotation in module.annotations())
    total = found.total() or 1
    holding = sum(count for annotation, count in found.items() if "Any" in annotation)
    loose = sum(found[each] for each in LOOSE)
    yield f"\n## {found.total():,} annotated parameters\n"
    yield f"loose: {loose} ({loose / total:.1%}), of them {', '.join(f'{each} {found[each]}' for each in LOOSE)}"
    yield f"with `Any` anywhere in the annotation: {holding} ({holding / total:.1%})"


def main() -> None:
    """Print the shape of a checkout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, nargs="?", default=Path(__file__).resolve().parents[2])
    checkout: Path = parser.parse_args().checkout.resolve()
    modules = modules_of(checkout)
    if not modules:
        parser.error(f"{checkout} is no checkout: no module of {PACKAGE} was found in it.")
    for lines in (
        draw(modules),
        [""],
        folder_table(checkout, modules),
        length_tables(modules),
        typing_table(modules),
    ):
        for line in lines:
            print(line)


if __name__ == "__main__":
    main()
