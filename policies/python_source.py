"""What a Python file of a workload may say: an allow-list of imports and a closed list of names, over the syntax tree alone.

Nothing is run or imported. This is one of two walls: the sandbox's empty network namespace and system-call filter are the
other. The rules are default-deny where a name can be resolved (imports, attributes of a standard module) and by name
where it cannot (any attribute called `load_library` is refused, whatever it hangs on).
"""

import ast
import io
import tokenize
import warnings
from collections.abc import Iterator, Set

from policies.python_words import (
    ALLOWED_DUNDERS,
    ALLOWED_MODULES,
    DENIED_ATTRIBUTES,
    DENIED_NAMES,
    LOADER_MODULES,
    NETWORK_MODULES,
    OWN_NAMES,
    PICKLE_MODULES,
    PROCESS_MODULES,
    REFLECTION,
    TEXT_CODES,
)

MAX_SOURCE = 1 << 20
MAX_NODES = 200_000


def module_names(path: str) -> set[str]:
    """The top-level names under which a file of the workload can be imported: `a/b.py` is `a` and `b`."""
    parts = path.removesuffix(".py").split("/")
    return {part for part in parts if part.isidentifier()}


def shadows(names: Set[str]) -> set[str]:
    """Names of local modules that would stand in front of a library or start by themselves."""
    libraries = {module.partition(".")[0] for module in ALLOWED_MODULES} | NETWORK_MODULES | LOADER_MODULES | PICKLE_MODULES
    return set(names) & (libraries | PROCESS_MODULES | {"sitecustomize", "usercustomize", "builtins"})


def judge_source(source: bytes, local: Set[str]) -> tuple[str, ...]:
    """The `python-…` codes that a file of Python earns, sorted, each once; `()` for a clean one.

    `local`: names of the workload's own modules. A file that does not parse, is not UTF-8 or is too large refuses.
    """
    if len(source) > MAX_SOURCE or b"\x00" in source:
        return ("python-unparsable",)
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
        if encoding != "utf-8":  # a coding cookie would make other code of these bytes than we read
            return ("python-unparsable",)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source.decode("utf-8"), feature_version=(3, 11))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ("python-unparsable",)
    judge = _Judge(local)
    for count, node in enumerate(ast.walk(tree)):
        if count > MAX_NODES:
            return ("python-unparsable",)
        judge.bind(node)
    judge.rebound()
    for node in ast.walk(tree):
        judge.look(node)
    return tuple(sorted(judge.codes))


class _Judge:
    def __init__(self, local: Set[str]) -> None:
        self.local = local
        self.modules: dict[str, str] = {}  # name in this file -> the module that it is
        self.others: set[str] = set()  # names that something else than an import of a module binds
        self.called: set[ast.Name] = set()
        self.codes: set[str] = set()

    def bind(self, node: ast.AST) -> None:
        """First pass: which names are modules, and which uses of getattr are plain calls."""
        for name in _bound(node):
            self.others.add(name)
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                self._is_module(alias.asname or top, alias.name if alias.asname else top)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                module = "" if node.level else f"{node.module}.{alias.name}"
                if module in ALLOWED_MODULES:
                    self._is_module(alias.asname or alias.name, module)
                else:
                    self.others.add(alias.asname or alias.name)
        elif isinstance(node, ast.Call) and _reflects(node) is not None and isinstance(node.func, ast.Name):
            self.called.add(node.func)

    def _is_module(self, name: str, module: str) -> None:
        if self.modules.setdefault(name, module) != module:
            self.others.add(name)

    def rebound(self) -> None:
        """A name that is a module in one place and something else in another could lend the module's rights to the other."""
        if self.others & set(self.modules):
            self.codes.add("python-rebinds-library")

    def look(self, node: ast.AST) -> None:
        """Second pass."""
        for code in self._codes(node):
            self.codes.add(code)

    def _codes(self, node: ast.AST) -> Iterator[str]:
        match node:
            case ast.Import():
                yield from (code for alias in node.names for code in self._module(alias.name))
            case ast.ImportFrom():
                yield from self._import_from(node)
            case ast.Attribute():
                yield from self._attribute(node)
            case ast.Name():
                yield from self._name(node)
            case ast.Call():
                yield from self._call(node)
            case ast.MatchClass():
                yield from (code for name in node.kwd_attrs for code in _member(name))
            case ast.Constant(value=str()) if _speaks_of_internals(str(node.value)):
                yield "python-reaches-internals"
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from _definition(node)

    def _module(self, name: str) -> Iterator[str]:
        top = name.partition(".")[0]
        if name in ALLOWED_MODULES or (top in self.local and top not in shadows(self.local)):
            return
        parts = set(name.split("."))
        if parts & NETWORK_MODULES:
            yield "python-network"
        elif parts & LOADER_MODULES:
            yield "python-loads-code"
        elif parts & PICKLE_MODULES:
            yield "python-pickle"
        elif parts & PROCESS_MODULES:
            yield "python-process"
        else:
            yield next(
                (DENIED_ATTRIBUTES[part] for part in name.split(".") if part in DENIED_ATTRIBUTES), "python-import-not-allowed"
            )

    def _import_from(self, node: ast.ImportFrom) -> Iterator[str]:
        if any(alias.name == "*" for alias in node.names):
            yield "python-star-import"
        if node.level:
            return
        module = node.module or ""
        yield from self._module(module)
        for alias in node.names:
            if alias.name != "*" and f"{module}.{alias.name}" not in ALLOWED_MODULES:
                yield from self._member_of(module, alias.name)

    def _attribute(self, node: ast.Attribute) -> Iterator[str]:
        base = self._resolve(node.value)
        if base is not None:
            if f"{base}.{node.attr}" not in ALLOWED_MODULES:
                yield from self._member_of(base, node.attr)
        elif node.attr.startswith("_") and isinstance(node.value, ast.Name) and node.value.id in OWN_NAMES:
            if node.attr.startswith("__") and node.attr.endswith("__"):
                yield from _member(node.attr)
        else:
            yield from _member(node.attr)

    def _resolve(self, node: ast.expr) -> str | None:
        """The module that an expression names, when it plainly does."""
        if isinstance(node, ast.Name):
            return self.modules.get(node.id)
        if isinstance(node, ast.Attribute):
            base = self._resolve(node.value)
            if base is not None and f"{base}.{node.attr}" in ALLOWED_MODULES:
                return f"{base}.{node.attr}"
        return None

    def _member_of(self, module: str, name: str) -> Iterator[str]:
        allowed = ALLOWED_MODULES.get(module)
        if allowed is None:
            yield from _member(name)
        elif name not in allowed and name not in ALLOWED_DUNDERS:
            yield DENIED_ATTRIBUTES.get(name, "python-reaches-internals")

    def _name(self, node: ast.Name) -> Iterator[str]:
        if node.id in DENIED_NAMES:
            yield DENIED_NAMES[node.id]
        elif (node.id in REFLECTION and node not in self.called) or (
            node.id.startswith("__") and node.id.endswith("__") and node.id not in ALLOWED_DUNDERS
        ):
            yield "python-reaches-internals"

    def _call(self, node: ast.Call) -> Iterator[str]:
        for keyword in node.keywords:
            if keyword.arg in TEXT_CODES:
                yield TEXT_CODES[str(keyword.arg)]
            elif keyword.arg == "allow_pickle":
                yield "python-pickle"
        name = _reflects(node)
        if name is not None:
            yield from _member(name)


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that this node binds, imports left out."""
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        yield node.id
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(
        node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler | ast.MatchAs | ast.MatchStar
    ):
        yield node.name or ""
    elif isinstance(node, ast.MatchMapping) and node.rest:
        yield node.rest


def _speaks_of_internals(text: str) -> bool:
    return text in TEXT_CODES or (text.startswith("__") and text.strip("_") in {"builtins", "globals", "import", "subclasses"})


def _reflects(node: ast.Call) -> str | None:
    """The attribute that a `getattr` or its like names in full sight; None for every other call."""
    if not isinstance(node.func, ast.Name) or node.func.id not in REFLECTION:
        return None
    if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) and isinstance(node.args[1].value, str):
        return node.args[1].value
    return None


def _member(name: str) -> Iterator[str]:
    if name in DENIED_ATTRIBUTES:
        yield DENIED_ATTRIBUTES[name]
    elif name.startswith("_") and name not in ALLOWED_DUNDERS:
        yield "python-reaches-internals"


def _definition(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    if isinstance(node, ast.AsyncFunctionDef):
        yield "python-async"
    if node.name in {"__reduce__", "__reduce_ex__", "__setstate__", "__getstate__"}:
        yield "python-pickle"
