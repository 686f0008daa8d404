"""A process of its own for code that may do anything: end, hang, print, fill the memory.

Used by test_all.py --json and by grader.py. The child is asked one thing at a time, as JSON
over a pipe, and each answer has a limit in seconds. It is a fork of a server that has
imported torch and nothing else, which takes some milliseconds; where there is no fork
(Windows) it is a new process, which takes seconds.

What the code can do: use up its own time, memory and output. With stranger=True, which
needs root, the child becomes a user of its own, who can neither write to what is not
everybody's, nor read what only root can, nor send a signal to the grader, nor leave a
process behind. Otherwise it has your rights, and only a container holds it.
"""

import contextlib
import importlib
import importlib.util
import json
import multiprocessing
import multiprocessing.util
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

try:
    import resource
except ImportError:             # Windows
    resource = None

NVIDIA = "/dev/nvidiactl", "/dev/dxg"   # where CUDA is, there is one (WSL's: the second)
USERS = range(50_000, 60_000)   # numbers of users without a name, one for each child
MEMORY = 2 << 30                # bytes beyond what the child has when it begins
FILES = 200 << 20               # bytes of a file that it writes
CPU = 600                       # seconds of computing
OUTPUT = 20 << 20               # bytes that it may print
ANSWER = 8 << 20                # bytes of an answer
PROCESSES = 64                  # processes and threads of a stranger
PRELOAD = ["torch", "numpy", "torch.optim.adamw"]       # by the server
# torch imports this when the first optimizer is made, which takes seconds: where processes
# are many, or limits short, the server does it once.
SLOW = "torch._dynamo"


class Ended(Exception):
    """The child gave no answer; the message says why. at_start: not even to begin."""
    at_start = False


def context():
    """Where forkserver exists, a server that has imported what takes long."""
    # Its folder must outlast one that the tests make and remove.
    before, tempfile.tempdir = tempfile.tempdir, None
    multiprocessing.util.get_temp_dir()
    tempfile.tempdir = before
    kind = "forkserver"
    if kind not in multiprocessing.get_all_start_methods() or not hasattr(os, "fork"):
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context(kind)
    server.set_forkserver_preload(PRELOAD)
    return server


@contextlib.contextmanager
def in_own_folder():
    """Work in a folder of ours. What starts with `python -c`, as servers and new processes
    do, imports from the working directory first, and that may be a submission.
    """
    before = None
    with contextlib.suppress(OSError):          # it may have been removed by now
        before = os.getcwd()
    os.chdir(multiprocessing.util.get_temp_dir())
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.chdir(before or "/")


class Child:
    """A process that answers requests: `service`, "module:function", made there.

    service(*arguments) returns a function request -> answer, both plain JSON. folder: where
    it works; a new one, removed at the end, if there is none. start: seconds in which the
    service must have begun. Raises Ended if it has not.
    """

    def __init__(self, service, *arguments, folder=None, stranger=False, memory=MEMORY,
                 files=FILES, cpu=CPU, output=OUTPUT, start=120):
        self.scratch = tempfile.mkdtemp(prefix="minbert-child-")
        self.user = new_user() if stranger else 0
        if stranger:
            for path in filter(None, (self.scratch, folder)):
                os.chown(path, self.user, self.user)
        self.context = ctx = context()
        self.pipe, theirs = ctx.Pipe()
        self.prints, their_prints = ctx.Pipe(duplex=False)
        self.process = ctx.Process(target=serve, args=(
            theirs, their_prints, folder or self.scratch, self.scratch, self.user, memory,
            files, cpu, service, arguments))
        with in_own_folder():
            self.process.start()
        theirs.close()
        their_prints.close()
        self.output, self.allowed, self.tail, self.fate = 0, output, b"", ""
        threading.Thread(target=self.listen, daemon=True).start()
        try:
            self.ask(None, start)       # the service is there; the server is too
        except Ended as end:
            end.at_start = True
            raise

    def listen(self):
        """Keep the last lines of what is printed; too much of it ends the child."""
        with contextlib.suppress(OSError, EOFError, ValueError):
            while True:
                piece = self.prints.recv_bytes() if os.name == "nt" else os.read(
                    self.prints.fileno(), 1 << 16)
                if not piece:
                    return
                self.output += len(piece)
                self.tail = (self.tail + piece)[-4000:]
                if self.output > self.allowed:
                    self.fate = f"it prints more than {self.allowed >> 20} MB"
                    self.kill()

    def printed(self):
        """The last lines of what was printed."""
        return self.tail.decode("utf-8", "replace")

    def ask(self, request, limit):
        """-> the answer.   Raises Ended if none comes within so many seconds"""
        # An answer repeats the request's number, so none can be written in advance.
        number = secrets.token_hex(8)
        try:
            self.pipe.send_bytes(json.dumps([number, request]).encode())
            got, answer = json.loads(self.receive(limit))
            if got != number:
                raise ValueError
            return answer
        except (EOFError, OSError, ValueError, TypeError, RecursionError) as error:
            self.process.join(3)
            code = self.process.exitcode
            if isinstance(error, OSError) and code is None:
                self.fate = self.fate or (f"its answer is larger than {ANSWER >> 20} MB, "
                                          f"or it wrote into the grader's own pipe")
            if code is None or isinstance(error, (ValueError, TypeError, RecursionError)):
                self.fate = self.fate or "it wrote into the grader's own pipe"
            elif code is not None and code < 0:
                self.fate = self.fate or f"it was ended by {signal_name(-code)}"
            self.fate = self.fate or f"it ended the process, with status {code}"
            self.close()
            last = self.printed().splitlines()[-1:]
            if code == 1 and last:
                self.fate += f": {last[0][-200:]}"
            raise Ended(self.fate) from None

    def receive(self, limit):
        """A message's bytes.   Raises EOFError if it is not whole within so many seconds"""
        came = []

        def read():     # in a thread: it would wait for ever for the rest of half a message
            try:
                # Not recv(): it would unpickle, and a pickle can run code here.
                came.append(self.pipe.recv_bytes(ANSWER))
            except (EOFError, OSError, TypeError, ValueError) as error:
                came.append(error)
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(limit)
        if not came:
            self.fate = self.fate or f"no result after {limit:g} s; an endless loop?"
            raise EOFError
        if isinstance(came[0], Exception):
            raise came[0]
        return came[0]

    def kill(self):
        with contextlib.suppress(OSError, AttributeError):
            os.killpg(self.process.pid, signal.SIGKILL)     # what it started, too
        with contextlib.suppress(OSError, AttributeError):
            self.process.kill()

    def close(self):
        self.kill()
        self.process.join()
        self.pipe.close()
        self.prints.close()
        if self.user:
            last = self.context.Process(target=kill_all, args=(self.user, new_user()))
            with in_own_folder():
                last.start()
            last.join()
        remove(self.scratch)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@contextlib.contextmanager
def ended_in_order():
    """SIGTERM raises SystemExit here, so that no child is left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def signal_name(number):
    try:
        return signal.Signals(number).name
    except ValueError:          # a real-time signal
        return f"signal {number}"


def remove(folder):
    """Whatever is in it: thousands of folders in each other, or files that cannot go."""
    with contextlib.suppress(RecursionError, OSError):
        shutil.rmtree(folder, ignore_errors=True)
    if os.path.exists(folder) and shutil.which("rm"):
        subprocess.run(["rm", "-rf", "--", folder], check=False, stderr=subprocess.DEVNULL)


def why_no_stranger() -> str:
    """Why a child cannot become another user, or "".   See Child's stranger.

    The other user must reach the packages and its files.
    """
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "the grader is not root"
    with contextlib.suppress(OSError), open("/proc/self/uid_map") as file:
        ids = [tuple(map(int, line.split())) for line in file]
        if not any(a <= USERS[0] and USERS[-1] < a + count for a, _, count in ids):
            return f"this container has no users {USERS[0]} to {USERS[-1]}"
    places = [pathlib.Path(file).resolve().parent
              for file in (importlib.util.find_spec("torch").origin, os.__file__)]
    temporary = pathlib.Path(tempfile.gettempdir()).resolve()
    for bits, path in [*((0o005, path) for place in places
                         for path in (place, *place.parents)),
                       *((0o001, path) for path in (temporary, *temporary.parents))]:
        if path.stat().st_mode & bits != bits:
            return f"other users may not read {path}"
    return ""


def new_user() -> int:
    """A user's number that owns no process, and has no name."""
    import pwd
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            taken.add(path.stat().st_uid)
    return secrets.choice([number for number in USERS if number not in taken])


def become(user):
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


def kill_all(user, other):
    """In a process of its own: only that user's processes are hit. Its real number is
    another, so that they cannot hit it first.
    """
    if hasattr(os, "setresuid"):
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(other, user, other)
    else:
        become(user)
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)


def serve(pipe, prints, folder, scratch, user, memory, files, cpu, service, arguments):
    """The child: first its limits, then the code that they are for."""
    if hasattr(os, "setsid"):
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(prints.fileno(), 1)
        os.dup2(prints.fileno(), 2)
        # The server's own pipes are open here too, and must not be written to.
        for number in range(3, 256):
            if number not in (nothing, pipe.fileno()):
                with contextlib.suppress(OSError):
                    os.fstat(number)
                    os.dup2(nothing, number)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(number, mode, encoding="utf-8", errors="replace", buffering=1)
            for number, mode in ((0, "r"), (1, "w"), (2, "w")))
    else:
        sys.stdin = open(os.devnull)
        sys.stdout = sys.stderr = open(os.devnull, "w")
    if user:
        become(user)
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"   # graded alike on every machine
    if resource:
        with open("/proc/self/statm") if os.path.exists("/proc/self/statm") else (
                contextlib.nullcontext()) as file:
            pages = [int(number) for number in file.read().split()] if file else []
        # Data leave out what is shared, so addresses are limited too. But not where tests
        # may use CUDA, which reserves more addresses than there is memory.
        # The limit on CPU time is for a child whose parent was killed.
        with_cuda = not user and any(map(os.path.exists, NVIDIA))
        used = {kind: memory + pages[place] * resource.getpagesize() if pages else None
                for kind, place in ((resource.RLIMIT_DATA, 5), (resource.RLIMIT_AS, 0))
                if kind == resource.RLIMIT_DATA or not with_cuda}
        for kind, most in (*used.items(),
                           (resource.RLIMIT_FSIZE, files), (resource.RLIMIT_CORE, 0),
                           (resource.RLIMIT_CPU, cpu),
                           (resource.RLIMIT_NPROC, PROCESSES if user else None)):
            if most is not None:
                with contextlib.suppress(OSError, ValueError):
                    resource.setrlimit(kind, (most, most))
    for name in ("TMPDIR", "TEMP", "TMP"):
        os.environ[name] = scratch
    tempfile.tempdir = None
    sys.dont_write_bytecode = True
    os.chdir(folder)
    sys.path.insert(0, folder)
    module, function = service.split(":")
    answer = getattr(importlib.import_module(module), function)(*arguments)
    while True:
        number, request = json.loads(pipe.recv_bytes())
        result = None if request is None else answer(request)
        pipe.send_bytes(json.dumps([number, result]).encode())
