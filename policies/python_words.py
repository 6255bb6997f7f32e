"""The vocabulary of `policies.python_source`: which modules a workload may import, and which names are refused anywhere."""


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


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
    "typing": words("""
        Any Callable ClassVar Final Generic Iterable Iterator Literal Mapping NamedTuple Optional Protocol Self Sequence
        TYPE_CHECKING TypeAlias TypedDict TypeVar Union cast overload
    """),
}

NETWORK_MODULES = words("""
    aiohttp asyncio boto3 botocore flask fsspec ftplib grpc http httpcore httpx huggingface_hub imaplib
    multiprocessing nntplib paramiko poplib pycurl redis requests selectors smtplib socket socketserver ssl
    telnetlib twisted urllib urllib3 uvicorn websocket websockets wsgiref xmlrpc zmq
""")
LOADER_MODULES = words("""
    importlib imp pip pkgutil runpy zipimport pkg_resources setuptools site transformers
""")
PICKLE_MODULES = words("""
    cloudpickle copyreg dill joblib marshal pickle pickletools shelve
""")
PROCESS_MODULES = words("""
    code codeop ctypes cffi gc inspect mmap os posix pty resource signal subprocess sys threading types
""")

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
        | words("""
    execl execle execlp execlpe execv execve execvp execvpe fork forkpty kill killpg popen posix_spawn
    posix_spawnp spawnl spawnv spawnve startfile system putenv setsid symlink symlink_to hardlink_to link_to
    chmod mknod mkfifo
"""),
        "python-process",
    ),
    **dict.fromkeys(
        words("""
    builtins compile compiler datapipes distributed exec export fx get_type_hints jit lib library npyio onnx ops
    package profiler read_array serialization testing from_file ag_frame cr_frame f_back f_builtins f_code f_globals
    f_locals func_globals gi_code gi_frame gi_yieldfrom tb_frame tb_next
"""),
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
    for name in words("""
    init post_init len getitem setitem contains iter next call enter exit repr str eq hash lt le gt ge add
    radd sub mul rmul truediv neg abs float int bool name doc file version all annotations main
""")
)
OWN_NAMES = frozenset({"self", "cls"})
TEXT_CODES = {"trust_remote_code": "python-loads-code"}
