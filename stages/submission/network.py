"""Network access in a program's syntax tree: a table of modules, calls and commands, each with a reason."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from stages.submission.python_source import Names

_CLIENT = "fetches from servers"
_CLOUD = "reads and writes cloud storage"
_REPORTS = "may report to a server"
_SOCKETS = "opens connections, among other things"

# Imports that are there to use the network. `Module` of a longer name goes before a shorter one.
FETCHING_MODULES = {
    **dict.fromkeys(
        ("requests", "httpx", "aiohttp", "urllib3", "pycurl", "httplib2", "treq", "pooch", "wget"), _CLIENT
    ),
    **dict.fromkeys(
        ("urllib.request", "urllib.robotparser", "http.client", "xmlrpc.client", "mechanize", "websocket"),
        _CLIENT,
    ),
    **dict.fromkeys(
        ("ftplib", "smtplib", "telnetlib", "poplib", "imaplib", "nntplib", "websockets", "paramiko"), _CLIENT
    ),
    **dict.fromkeys(
        ("grpc", "pysftp", "fabric", "asyncssh", "selenium", "playwright", "scrapy", "yt_dlp"), _CLIENT
    ),
    **dict.fromkeys(
        ("boto3", "botocore", "google.cloud", "azure.storage", "gcsfs", "s3fs", "adlfs", "minio"), _CLOUD
    ),
    **dict.fromkeys(
        ("huggingface_hub", "datasets", "gdown", "kagglehub", "kaggle", "modelscope"), "downloads data"
    ),
    "torch.hub": "downloads models",
}
# Imports that may do so, or may do something else.
POSSIBLE_MODULES = {
    **dict.fromkeys(
        ("socket", "ssl", "asyncio", "socketserver", "trio", "anyio", "twisted", "tornado"), _SOCKETS
    ),
    **dict.fromkeys(
        ("multiprocessing.managers", "multiprocessing.connection", "zmq", "Pyro5", "rpyc"),
        "shares objects by sockets",
    ),
    **dict.fromkeys(
        ("urllib", "http", "xmlrpc", "webbrowser", "fsspec", "smart_open"), "has a client among other things"
    ),
    **dict.fromkeys(("wandb", "mlflow", "comet_ml", "neptune", "clearml", "sentry_sdk", "swanlab"), _REPORTS),
    **dict.fromkeys(("pip", "ensurepip", "conda"), "installs packages"),
    "ctypes": "calls libraries that are not read here",
    "cffi": "calls libraries that are not read here",
    "torch.utils.cpp_extension": "builds code that is not read here",
    "torch.distributed.rpc": "calls other machines",
    "ray": "runs code on other machines",
}
HARMLESS_MODULES = frozenset(
    ["urllib.parse", "urllib.error", "urllib.response", "http.HTTPStatus", "http.cookies"]
)
FETCHING_CALLS = {
    **dict.fromkeys(
        ("urlopen", "urlretrieve", "create_connection", "open_connection"), "connects to a server"
    ),
    **dict.fromkeys(
        ("load_state_dict_from_url", "download_url_to_file", "from_pretrained"), "downloads weights"
    ),
    **dict.fromkeys(
        ("hf_hub_download", "snapshot_download", "load_dataset", "download_url"), "downloads data"
    ),
}
SHELLS = re.compile(
    r"subprocess\.(run|call|check_call|check_output|Popen|getoutput|getstatusoutput)|os\.(system|popen|exec[lpev]{1,3}|spawn[lpev]{1,3}"
    r"|posix_spawnp?)|pty\.spawn|asyncio\.(subprocess\.)?create_subprocess_(exec|shell)"
)
FETCHERS = frozenset(
    [
        "curl",
        "wget",
        "aria2c",
        "rsync",
        "scp",
        "sftp",
        "ftp",
        "gsutil",
        "ssh",
        "nc",
        "ncat",
        "netcat",
        "telnet",
        "gdown",
        "lftp",
        "axel",
        "kaggle",
        "huggingface-cli",
        "hf",
        "aws",
        "gcloud",
        "azcopy",
        "rclone",
        "s3cmd",
        "youtube-dl",
        "yt-dlp",
    ]
)
INSTALLERS = {
    **dict.fromkeys(
        ("pip", "pip3", "uv", "conda", "mamba", "poetry", "npm", "brew"),
        ("install", "download", "add", "sync", "update"),
    ),
    **dict.fromkeys(
        ("apt", "apt-get", "yum", "dnf", "apk", "pacman"), ("install", "update", "upgrade", "add", "-S")
    ),
    "git": ("clone", "fetch", "pull", "push", "ls-remote", "submodule", "lfs"),
    "ensurepip": (),
}
OTHER_PROGRAMS = frozenset(
    [
        "python",
        "python3",
        "bash",
        "sh",
        "zsh",
        "env",
        "sudo",
        "nohup",
        "xargs",
        "torchrun",
        "perl",
        "node",
        "ruby",
        "timeout",
    ]
)
_URL = re.compile(r"\b(?:https?|ftp|s3|gs|hf)://")
_WORD = re.compile(r"[\w./:@%+=-]+")
_LOOPBACK = frozenset(["localhost", "127.0.0.1", "::1"])


@dataclass(frozen=True)
class Reach:
    """One place that uses the network if `certain`, or may use it otherwise."""

    line: int
    what: str
    certain: bool


def reaches(
    tree: ast.Module, names: Names, own: frozenset[str] = frozenset(), defined: frozenset[str] = frozenset()
) -> list[Reach]:
    """Every place of a program that uses, or may use, the network.

    `own` names the modules of the same folder, `defined` the program's functions. A call of one of these is
    not taken for a library's function of the same name.
    """
    places: dict[tuple[int, str], Reach] = {}
    roots = frozenset(module.partition(".")[0] for module in names.modules.values()) | {"importlib"}
    for node in ast.walk(tree):
        for reason, certain in _of(node, names, own, roots, defined):
            line = getattr(node, "lineno", 0)
            places.setdefault((line, reason), Reach(line, reason, certain))
    return list(places.values())


def _of(
    node: ast.AST, names: Names, own: frozenset[str], roots: frozenset[str], defined: frozenset[str]
) -> Iterator[tuple[str, bool]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield from _module(alias.name, own)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        for alias in node.names:
            yield from _module(f"{node.module}.{alias.name}", own)
    elif isinstance(node, ast.Attribute):
        if "." in (name := names.dotted(node)) and name.partition(".")[0] in roots:
            yield from _module(name, own, "uses")
    elif isinstance(node, ast.Call):
        yield from _call(node, names, own, defined)


def _module(name: str, own: frozenset[str], verb: str = "imports") -> Iterator[tuple[str, bool]]:
    parts = name.split(".")[:6]
    if parts[0] in own:
        return
    for count in range(len(parts), 0, -1):
        prefix = ".".join(parts[:count])
        if prefix in HARMLESS_MODULES:
            return
        if prefix in FETCHING_MODULES:
            yield f"{verb} {prefix}, which {FETCHING_MODULES[prefix]}", True
            return
        if prefix in POSSIBLE_MODULES:
            yield f"{verb} {prefix}, which {POSSIBLE_MODULES[prefix]}", False
            return


def _call(
    node: ast.Call, names: Names, own: frozenset[str], defined: frozenset[str]
) -> Iterator[tuple[str, bool]]:
    if module := names.imported(node):
        yield from _module(module, own)
        return
    name = names.dotted(node.func)
    last = name.rpartition(".")[2] or (node.func.attr if isinstance(node.func, ast.Attribute) else "")
    if last in FETCHING_CALLS and last not in defined and name.partition(".")[0] not in own:
        if not (node.args and _LOOPBACK & {*names.constants(node.args[0])}):
            yield f"calls {name or last}, which {FETCHING_CALLS[last]}", True
    elif name.startswith("torch.hub."):
        yield f"calls {name}, which downloads models", True
    elif SHELLS.fullmatch(name) or (name.startswith("pip.") and last == "main"):
        yield from _command(node, names, name)


def _command(node: ast.Call, names: Names, called: str) -> Iterator[tuple[str, bool]]:
    given = [*node.args, *(word.value for word in node.keywords if word.arg in ("args", "command", "cmd"))]
    texts = [text for argument in given for text in names.constants(argument)]
    words = [word for text in texts for word in _WORD.findall(text[:4_000])]
    if called.startswith("pip."):
        words.insert(0, "pip")
    command = " ".join(texts)[:80]
    if _fetches(words) or any(_URL.search(text) for text in texts):
        yield f"runs {command!r}", True
    elif not words or not _starts_with_text(given, names):
        yield f"runs a computed command ({called})", False
    elif words[0].rpartition("/")[2] in OTHER_PROGRAMS:
        yield f"runs another program ({command!r})", False


def _fetches(words: list[str]) -> bool:
    names = [word.rpartition("/")[2] for word in words]
    for index, name in enumerate(names):
        if name in FETCHERS:
            return True
        if name in INSTALLERS and (
            not INSTALLERS[name] or any(later in INSTALLERS[name] for later in names[index + 1 :])
        ):
            return True
    return False


def _starts_with_text(given: list[ast.expr], names: Names) -> bool:
    """Whether the name of the program that a command starts is a constant."""
    first = given[0] if given else None
    for _ in range(3):
        if isinstance(first, ast.List | ast.Tuple) and first.elts:
            first = first.elts[0]
        elif isinstance(first, ast.JoinedStr) and first.values:
            first = first.values[0]
        elif isinstance(first, ast.BinOp):
            first = first.left
        elif isinstance(first, ast.Name) and len(values := names.values.get(first.id, [])) == 1:
            first = values[0]
    return isinstance(first, ast.Constant) and isinstance(first.value, str) and bool(first.value.strip())
