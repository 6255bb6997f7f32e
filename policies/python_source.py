"""What a Python file of a workload may say: an allow-list of imports and a closed list of names, over the syntax tree alone.

Nothing is run or imported. This is one of two walls: the sandbox's empty network namespace and system-call filter are the
other. The rules are default-deny where a name can be resolved (imports, attributes of a standard module) and by name
where it cannot (any attribute called `load_library` is refused, whatever it hangs on).
"""

import ast
import warnings
from collections.abc import Iterator, Set

MAX_SOURCE = 1 << 20
MAX_NODES = 200_000

# module -> its attributes that may be used; None: every public one that DENIED_ATTRIBUTES does not name
ALLOWED_MODULES: dict[str, frozenset[str] | None] = {
    "__future__": None,
    "abc": frozenset({"ABC", "abstractmethod"}),
    "argparse": frozenset({"ArgumentParser", "Namespace"}),
    "collections": frozenset({"Counter", "OrderedDict", "abc", "defaultdict", "deque", "namedtuple"}),
    "collections.abc": frozenset(
        {"Callable", "Collection", "Hashable", "Iterable", "Iterator", "Mapping", "MutableMapping", "Sequence", "Set", "Sized"}
    ),
    "contextlib": frozenset({"closing", "contextmanager", "nullcontext", "suppress"}),
    "copy": frozenset({"copy", "deepcopy"}),
    "dataclasses": frozenset({"asdict", "dataclass", "field", "fields", "replace"}),
    "datetime": frozenset({"UTC", "date", "datetime", "timedelta", "timezone"}),
    "enum": frozenset({"Enum", "IntEnum", "StrEnum", "auto", "unique"}),
    "functools": frozenset({"cache", "cached_property", "lru_cache", "partial", "reduce", "wraps"}),
    "hashlib": frozenset({"blake2b", "sha256", "sha512"}),
    "heapq": None,
    "itertools": None,
    "json": frozenset({"JSONDecodeError", "dump", "dumps", "load", "loads"}),
    "math": None,
    "numbers": frozenset({"Integral", "Number", "Real"}),
    "numpy": None,
    "numpy.random": None,
    "numpy.typing": None,
    "os": frozenset({"environ", "fspath", "getenv", "path"}),
    "os.path": frozenset({"basename", "dirname", "exists", "isdir", "isfile", "join", "splitext"}),
    "pathlib": frozenset({"Path", "PurePath", "PurePosixPath"}),
    "random": frozenset({"Random", "choice", "choices", "gauss", "randint", "random", "sample", "seed", "shuffle", "uniform"}),
    "re": frozenset({"compile", "findall", "fullmatch", "match", "search", "split", "sub"}),
    "rapha": frozenset({"RaphaDataLoader", "loader"}),
    "rapha.loader": None,
    "safetensors": None,
    "safetensors.numpy": frozenset({"load_file", "save_file"}),
    "safetensors.torch": frozenset({"load_file", "load_model", "save_file", "save_model"}),
    "statistics": frozenset({"fmean", "mean", "median", "pstdev", "stdev", "variance"}),
    "string": frozenset({"ascii_letters", "ascii_lowercase", "ascii_uppercase", "digits"}),
    "time": frozenset({"monotonic", "perf_counter", "sleep", "time"}),
    "torch": None,
    "torch.amp": None,
    "torch.autograd": None,
    "torch.distributions": None,
    "torch.fft": None,
    "torch.func": None,
    "torch.linalg": None,
    "torch.nn": None,
    "torch.nn.functional": None,
    "torch.nn.init": None,
    "torch.nn.utils": None,
    "torch.optim": None,
    "torch.optim.lr_scheduler": None,
    "torch.special": None,
    "torch.utils": frozenset({"checkpoint", "data"}),
    "torch.utils.checkpoint": frozenset({"checkpoint", "checkpoint_sequential"}),
    "torch.utils.data": None,
    "typing": None,
}

NETWORK_MODULES = frozenset(
    "aiohttp asyncio boto3 botocore flask fsspec ftplib grpc http httpcore httpx huggingface_hub imaplib multiprocessing nntplib paramiko"
    " poplib pycurl redis requests selectors smtplib socket socketserver ssl telnetlib twisted urllib urllib3 uvicorn websocket"
    " websockets wsgiref xmlrpc zmq".split()
)
LOADER_MODULES = frozenset("importlib imp pip pkgutil runpy zipimport pkg_resources setuptools site transformers".split())
PICKLE_MODULES = frozenset("cloudpickle copyreg dill joblib marshal pickle pickletools shelve".split())
PROCESS_MODULES = frozenset(
    "code codeop ctypes cffi gc inspect mmap os posix pty resource signal subprocess sys threading types".split()
)

# Attributes refused on whatever they hang: reached by another name they do the same thing.
DENIED_ATTRIBUTES: dict[str, str] = {
    **dict.fromkeys(NETWORK_MODULES | {"DataSource", "genfromtxt", "loadtxt", "urlopen", "urlretrieve"}, "python-network"),
    **dict.fromkeys(
        LOADER_MODULES
        | {"cpp_extension", "ctypeslib", "f2py", "from_pretrained", "hub", "load_inline", "load_library", "model_zoo"},
        "python-loads-code",
    ),
    **dict.fromkeys(
        PICKLE_MODULES
        | {"fromregex", "load", "load_checkpoint", "load_url", "memmap", "open_memmap", "save", "savez", "savez_compressed"},
        "python-pickle",
    ),
    **dict.fromkeys(
        (PROCESS_MODULES - {"code", "types", "signal", "resource"})
        | set(
            "execl execle execlp execlpe execv execve execvp execvpe fork forkpty kill killpg popen posix_spawn posix_spawnp spawnl"
            " spawnv spawnve startfile system putenv setsid symlink symlink_to hardlink_to link_to chmod mknod mkfifo".split()
        ),
        "python-process",
    ),
    **dict.fromkeys(
        "builtins compile compiler distributed exec export fx jit library onnx ops package profiler serialization testing"
        " from_file".split(),
        "python-reaches-internals",
    ),
}

DENIED_NAMES = {
    **dict.fromkeys(("__import__", "__loader__", "__spec__", "__builtins__"), "python-loads-code"),
    **dict.fromkeys(("compile", "eval", "exec"), "python-dynamic-code"),
    **dict.fromkeys(("breakpoint", "dir", "globals", "help", "input", "locals", "vars"), "python-reaches-internals"),
}
REFLECTION = frozenset({"getattr", "setattr", "delattr", "hasattr"})
ALLOWED_DUNDERS = frozenset(
    f"__{name}__"
    for name in "init post_init len getitem setitem contains iter next call enter exit repr str eq hash lt le gt ge add radd sub"
    " mul rmul truediv neg abs float int bool name doc file version all annotations main".split()
)
OWN_NAMES = frozenset({"self", "cls"})
TEXT_CODES = {"trust_remote_code": "python-loads-code"}


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
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in REFLECTION:
            if _constant_name(node) is not None:
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
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from self._module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            yield from self._import_from(node)
        elif isinstance(node, ast.Attribute):
            yield from self._attribute(node)
        elif isinstance(node, ast.Name):
            yield from self._name(node)
        elif isinstance(node, ast.Call):
            yield from self._call(node)
        elif isinstance(node, ast.MatchClass):
            for name in node.kwd_attrs:
                yield from _member(name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value in TEXT_CODES or node.value.strip("_") in {"import", "builtins", "subclasses", "globals"}:
                yield "python-reaches-internals"
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
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
        elif node.id in REFLECTION and node not in self.called:
            yield "python-reaches-internals"
        elif node.id.startswith("__") and node.id.endswith("__") and node.id not in ALLOWED_DUNDERS:
            yield "python-reaches-internals"

    def _call(self, node: ast.Call) -> Iterator[str]:
        for keyword in node.keywords:
            if keyword.arg in TEXT_CODES:
                yield TEXT_CODES[str(keyword.arg)]
            elif keyword.arg == "allow_pickle":
                yield "python-pickle"
        if isinstance(node.func, ast.Name) and node.func.id in REFLECTION:
            name = _constant_name(node)
            if name is not None:
                yield from _member(name)


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that this node binds, imports left out."""
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        yield node.id
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
        yield node.name
    elif isinstance(node, ast.MatchMapping) and node.rest:
        yield node.rest


def _constant_name(node: ast.Call) -> str | None:
    """The attribute that a `getattr` and its like name in full sight."""
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
