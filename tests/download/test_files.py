"""Files that appear when whole, what they keep of old ones, and spools."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from operator import methodcaller
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from poetry.download import location
from poetry.download.files import OutputError, Spool
from poetry.download.output import Sink, open_sink
from tests.calls import failing
from tests.loop import reactor, wait
from tests.processes import need, run

ACL = "system.posix_acl_access"


def finish(sink: Sink, *, whole: bool = True) -> None:
    """Finish a sink while the reactor turns, and close it."""

    async def finished() -> None:
        await sink.finish(whole=whole)

    with closing(sink):
        wait(Deferred.fromCoroutine(finished()))


def save(path: Path, poem: bytes = b"a poem") -> list[str]:
    """Write a file as a poem is written; give the notes for the user."""
    notes: list[str] = []
    sink = open_sink(reactor, str(path), notes.append)
    sink.write(poem)
    finish(sink)
    return notes


def mode_of(path: Path) -> int:
    """The permissions of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def spooled(poem: bytes) -> Spool:
    """A spool that is finished."""
    spool = Spool()
    spool.write(poem)
    wait(Deferred.fromCoroutine(spool.finish(whole=True)))
    return spool


def test_restarted_spool_is_copied_whole() -> None:
    """A spool that was started again has the bytes written since, and is copied whole."""
    spool = Spool()
    spool.write(b"half")
    assert spool.size == 4
    assert spool.restart()
    spool.write(b"all")
    wait(Deferred.fromCoroutine(spool.finish(whole=True)))
    assert spool.read() == b"all"
    spool.check()
    spool.close()


class Refusing:
    """A temporary file of which only the first read succeeds: `rest` is what later reads do."""

    def __init__(self, rest: Callable[[], bytes]) -> None:
        self.reads = iter([lambda: b"half"])
        self.rest = rest

    def read(self, size: int) -> bytes:
        del size
        return next(self.reads, self.rest)()


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        (bytes, "it gave 4 bytes of 6"),
        (failing(errno.EIO), "Input/output error"),
    ],
)
def test_short_read_of_a_spool_is_an_error(rest: Callable[[], bytes], reason: str) -> None:
    """A refused read is no end of a poem: the temporary file is at fault."""
    spool = spooled(b"a poem")
    file, spool.file = spool.file, Refusing(rest)  # type: ignore[assignment]
    assert [spool.read(10), spool.read(10)] == [b"half", b""]
    with pytest.raises(OutputError, match=reason) as failed:
        spool.check()
    assert failed.value.place == "temporary file (TMPDIR)"
    file.close()


def test_file_appears_when_whole(tmp_path: Path) -> None:
    """A file has its name only when all is written; an old one keeps its mode, not its text."""
    path = tmp_path / "poem.txt"
    sink = open_sink(reactor, str(path), print)
    sink.write(b"half")
    assert sink.restart()
    sink.write(b"a poem")
    assert not path.exists()
    finish(sink)
    assert path.read_bytes() == b"a poem"
    path.chmod(0o640)
    sink = open_sink(reactor, str(path), print)
    sink.write(b"another")
    assert path.read_bytes() == b"a poem"
    finish(sink)
    assert path.read_bytes() == b"another"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("end", [methodcaller("close"), partial(finish, whole=False)])
def test_failure_leaves_no_file(
    tmp_path: Path, old: bytes | None, end: Callable[[Sink], object]
) -> None:
    """A failure leaves no new file, and an old file unchanged."""
    path = tmp_path / "poem.txt"
    if old is not None:
        path.write_bytes(old)
    sink = open_sink(reactor, str(path), print)
    sink.write(b"half")
    end(sink)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == ([] if old is None else [old])


def test_symbolic_link_is_followed(tmp_path: Path) -> None:
    """The target of a link is replaced, and not the link."""
    link, target = tmp_path / "link", tmp_path / "there" / "poem.txt"
    target.parent.mkdir()
    link.symlink_to(target)
    for poem in (b"a poem", b"another"):
        save(link, poem)
        assert link.is_symlink()
        assert target.read_bytes() == poem


def test_file_leaves_no_descriptor(tmp_path: Path) -> None:
    """The directory of a file, and that of a link to it, are open for no longer than the file."""
    link = tmp_path / "link.txt"
    link.symlink_to(tmp_path / "poem.txt")
    before = list(Path("/proc/self/fd").iterdir())
    save(link)
    assert list(Path("/proc/self/fd").iterdir()) == before


def test_file_is_synchronized_before_its_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash of the machine leaves the old file, or all of the new one."""
    path, synced = tmp_path / "poem.txt", []

    def fsync(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    save(path, b"a poem")
    assert synced == [(len(b"a poem"), False)]
    assert path.exists()


def test_set_id_bits_are_not_kept(tmp_path: Path) -> None:
    """A file from a network never runs with another user's rights."""
    path = tmp_path / "poem.txt"
    path.touch()
    path.chmod(0o7751)
    assert save(path) == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o751


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_owner_is_kept(tmp_path: Path) -> None:
    """A user's file that root writes stays the user's."""
    path = tmp_path / "poem.txt"
    path.touch()
    os.chown(path, 4711, 4712)
    assert save(path) == []
    assert (path.stat().st_uid, path.stat().st_gid) == (4711, 4712)


def test_circular_link_is_an_error(tmp_path: Path) -> None:
    """A link that leads only to itself is an error, and stays."""
    link = tmp_path / "link"
    link.symlink_to(link)
    with pytest.raises(OutputError, match="Too many levels of symbolic links"):
        open_sink(reactor, str(link), print)
    assert [path.is_symlink() for path in tmp_path.iterdir()] == [True]


@pytest.mark.parametrize("name", [".", "no/such/directory", "poem.txt/", "poem.txt/.", "new/.."])
def test_directory_and_missing_folder_are_errors(tmp_path: Path, name: str) -> None:
    """A directory and a path without a folder cannot be written."""
    with pytest.raises(OutputError, match=r"directory") as failed:
        open_sink(reactor, f"{tmp_path}/{name}", print)
    assert failed.value.place == f"{tmp_path}/{name}"


# What is kept of an old file


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file that a poem is to replace."""
    path = tmp_path / "poem.txt"
    path.write_bytes(b"an old poem")
    path.chmod(0o644)
    return path


def setfacl(*words: str | Path) -> None:
    """Give a file an access control list."""
    done = run([need("setfacl"), *words])
    if done.returncode:
        pytest.skip(f"no access control lists here: {done.stderr.decode()}")


def test_access_control_list_is_kept(old: Path) -> None:
    """A list stays, and the group's permissions are not its mask."""
    setfacl("-m", "u:4711:rw,g::-", old)
    before = os.getxattr(old, ACL)
    assert save(old) == []
    assert os.getxattr(old, ACL) == before
    assert (mode_of(old), old.read_bytes()) == (0o664, b"a poem")


def test_default_access_control_list_is_not_added(old: Path) -> None:
    """The directory's default list for new files does not replace the old file's lack of one."""
    setfacl("-d", "-m", "u:4711:rw", old.parent)
    assert save(old) == []
    assert ACL not in os.listxattr(old)
    assert mode_of(old) == 0o644


@pytest.mark.parametrize("call", ["setxattr", "removexattr"])
def test_lost_access_control_list_restricts_to_the_owner(
    old: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose list is lost is its owner's alone, and a note says so."""
    if call == "setxattr":
        setfacl("-m", "u:4711:rw", old)
    else:
        setfacl("-d", "-m", "u:4711:rw", old.parent)
    monkeypatch.setattr(os, call, failing(errno.EPERM))
    lost = f"{old}: its access control list cannot be kept: Operation not permitted"
    assert save(old) == [lost]
    assert (mode_of(old), old.read_bytes()) == (0o600, b"a poem")


@pytest.fixture
def attribute(old: Path) -> str:
    """The name of an extended attribute of the old file."""
    try:
        os.setxattr(old, "user.author", b"Schiller")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    return "user.author"


def test_extended_attributes_are_kept(
    old: Path, attribute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attributes stay, but for those of the bytes: signatures and capabilities."""
    assert save(old) == []
    assert os.getxattr(old, attribute) == b"Schiller"
    assert save(old) == []
    monkeypatch.setattr("poetry.download.access.CONTENT_ATTRIBUTES", {attribute})
    assert save(old) == []
    assert attribute not in os.listxattr(old)


def test_equal_attribute_is_not_set_again(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attribute that is the same already, as a security label is, is not set again."""
    monkeypatch.setattr(os, "listxattr", lambda *_: ["security.label"])
    monkeypatch.setattr(os, "getxattr", lambda *_: b"public")
    monkeypatch.setattr(os, "setxattr", failing(errno.EPERM))
    assert save(old) == []


@pytest.mark.usefixtures("attribute")
def test_lost_extended_attributes_are_a_note(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A note tells of lost attributes, and the permissions stay."""
    monkeypatch.setattr(os, "setxattr", failing(errno.ENOSPC))
    assert save(old) == [f"{old}: its extended attributes cannot be kept: No space left on device"]
    assert mode_of(old) == 0o644


def test_unreadable_attributes_count_as_a_list(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unreadable attributes may be a list; where the system has none, nothing is lost."""
    for number in (errno.ENOTSUP, errno.ENOSYS):
        monkeypatch.setattr(os, "listxattr", failing(number))
        assert save(old) == []
        assert mode_of(old) == 0o644
    monkeypatch.delattr(os, "listxattr")
    assert save(old) == []
    monkeypatch.setattr(os, "listxattr", failing(errno.EACCES), raising=False)
    lost = f"{old}: its access control list cannot be kept: it cannot be read"
    assert save(old) == [lost]
    assert mode_of(old) == 0o600


def test_unreadable_old_file_counts_as_having_a_list(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that may be replaced and not read counts as having a list."""
    real = location.Location.open

    def open_no_old(self: location.Location, name: str, *rest: int) -> int:
        if name == self.name:
            failing(errno.EACCES)()
        return real(self, name, *rest)

    monkeypatch.setattr(location.Location, "open", open_no_old)
    assert save(old) == [f"{old}: its access control list cannot be kept: it cannot be read"]
    assert (mode_of(old), old.read_bytes()) == (0o600, b"a poem")


@pytest.fixture
def theirs(old: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The old file as another user's and group's; gives the requests to fchown(2)."""
    asked: list[tuple[int, int]] = []
    real = os.fstat
    inode = old.stat().st_ino

    def fstat(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        if status.st_ino != inode:
            return status
        return os.stat_result((*status[:4], 4711, 4712, *status[6:]))

    def fchown(_: int, user: int, group: int) -> None:
        asked.append((user, group))
        failing(errno.EPERM)()

    monkeypatch.setattr(os, "fstat", fstat)
    monkeypatch.setattr(os, "fchown", fchown)
    return asked


@pytest.mark.parametrize(("mode", "left"), [(0o664, 0o644), (0o604, 0o600), (0o660, 0o600)])
def test_lost_owner_and_group_widen_no_permission(
    old: Path, theirs: list[tuple[int, int]], mode: int, left: int
) -> None:
    """Each is tried, a note tells of the loss, and no user may do more than before."""
    old.chmod(mode)
    assert save(old) == [f"{old}: its group and owner cannot be kept: Operation not permitted"]
    assert theirs == [(-1, 4712), (4711, -1)]
    assert (mode_of(old), old.read_bytes()) == (left, b"a poem")


def test_unneeded_fchmod_may_fail(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused fchmod(2) is no error where the permissions are right already."""
    monkeypatch.setattr(os, "fchmod", failing(errno.EPERM))
    assert save(old) == []
    assert mode_of(old) == 0o644


def test_lost_permissions_never_widen(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrower permissions are a note; wider ones are an error."""
    old.chmod(0o666)  # the umask does not let a new file be
    monkeypatch.setattr(os, "fchmod", failing(errno.EPERM))
    before = os.umask(0o022)
    try:
        assert save(old) == [f"{old}: its permissions cannot be kept: Operation not permitted"]
        assert mode_of(old) == 0o644
        sink = open_sink(reactor, str(old), print)
        old.chmod(0o600)
        with pytest.raises(OutputError, match="Operation not permitted"):
            finish(sink)
    finally:
        os.umask(before)
    assert old.read_bytes() == b"a poem"
    assert list(old.parent.iterdir()) == [old]


# What is refused at the end


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EROFS])
def test_file_system_without_fsync_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Where fsync(2) is not supported a file is written all the same."""
    monkeypatch.setattr(os, "fsync", failing(number))
    assert save(tmp_path / "poem.txt") == []
    assert (tmp_path / "poem.txt").read_bytes() == b"a poem"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failed_synchronization_keeps_the_old_file(
    old: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """Where the disk has not all of the file, there is an error, and the old file."""
    monkeypatch.setattr(os, call, failing(number))
    with pytest.raises(OutputError, match=os.strerror(number)):
        save(old)
    assert old.read_bytes() == b"an old poem"


def test_rename_is_the_last_step(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole file is a success, whatever fails afterwards."""
    monkeypatch.setattr(os, "unlink", failing(errno.EPERM))
    assert save(old) == []
    assert list(old.parent.iterdir()) == [old]


def test_part_that_has_vanished_is_no_note(old: Path) -> None:
    """Where somebody else has removed the part, nothing is left to tell."""
    notes: list[str] = []
    sink = open_sink(reactor, str(old), notes.append)
    [part] = [path for path in old.parent.iterdir() if path != old]
    part.unlink()
    sink.close()
    assert not notes


def test_part_that_cannot_be_removed_is_a_note(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A note names the part that a failure has left."""
    monkeypatch.setattr(os, "unlink", failing(errno.EPERM))
    notes: list[str] = []
    open_sink(reactor, str(old), notes.append).close()
    [part] = [path.name for path in old.parent.iterdir() if path != old]
    assert notes == [f"{old}: {part} is left there: Operation not permitted"]


# Where others may write


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A file beside, which is not to be overwritten."""
    path = tmp_path / "private" / "keys"
    path.parent.mkdir()
    path.write_bytes(b"keys")
    return path


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_link_in_a_shared_directory_is_not_followed(
    tmp_path: Path, elsewhere: Path, mode: int
) -> None:
    """Another user may have made the link; also where one's own link leads there."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    shared.chmod(mode)
    (shared / "poem.txt").symlink_to(elsewhere)
    own.symlink_to(shared / "poem.txt")
    for path in (shared / "poem.txt", own):
        with pytest.raises(OutputError, match="others may write to, is not followed") as failed:
            save(path)
        assert failed.value.place == str(path)
    assert elsewhere.read_bytes() == b"keys"
    assert [path.name for path in shared.iterdir()] == ["poem.txt"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link away")
def test_own_link_in_a_group_directory_is_followed(tmp_path: Path, elsewhere: Path) -> None:
    """In a directory of a group, one's own links are followed, and those of others are not."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o775)
    link = shared / "poem.txt"
    link.symlink_to(elsewhere)
    assert save(link) == []
    assert elsewhere.read_bytes() == b"a poem"
    os.chown(link, 4711, 4712, follow_symlinks=False)
    with pytest.raises(OutputError, match="is not followed"):
        save(link, b"another")
    assert elsewhere.read_bytes() == b"a poem"


def test_link_swapped_in_is_replaced(old: Path, elsewhere: Path) -> None:
    """A link that takes the place of the file meanwhile is replaced, and not its target."""
    sink = open_sink(reactor, str(old), print)
    sink.write(b"a poem")
    old.unlink()
    old.symlink_to(elsewhere)
    finish(sink)
    assert elsewhere.read_bytes() == b"keys"
    assert (old.is_symlink(), old.read_bytes()) == (False, b"a poem")


def test_swapped_directory_does_not_move_the_file(tmp_path: Path, elsewhere: Path) -> None:
    """A directory is looked up once: the file stays in it, whatever has its name now."""
    directory = tmp_path / "directory"
    directory.mkdir()
    sink = open_sink(reactor, str(directory / "keys"), print)
    sink.write(b"a poem")
    directory.rename(tmp_path / "renamed")
    directory.symlink_to(elsewhere.parent)
    finish(sink)
    assert (tmp_path / "renamed" / "keys").read_bytes() == b"a poem"
    assert elsewhere.read_bytes() == b"keys"


def test_file_swapped_in_for_a_fifo_is_not_written(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FIFO that is another file by the time it is opened is not written to."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    real = location.Location.status

    def status(self: location.Location) -> os.stat_result | None:
        found = real(self)
        with suppress(FileNotFoundError):
            fifo.unlink()
        fifo.hardlink_to(elsewhere)
        return found

    monkeypatch.setattr(location.Location, "status", status)
    with pytest.raises(OutputError, match="something else was put there meanwhile"):
        open_sink(reactor, str(fifo), print)
    assert elsewhere.read_bytes() == b"keys"


@pytest.mark.parametrize("name", ["poem.txt", "link"])
def test_path_is_used_without_openat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Where a directory cannot be held open, as on Windows, its path is used."""
    monkeypatch.setattr(os, "supports_dir_fd", set())
    (tmp_path / "link").symlink_to("poem.txt")
    for poem in (b"a poem", b"another"):
        assert save(tmp_path / name, poem) == []
        assert (tmp_path / "poem.txt").read_bytes() == poem
    open_sink(reactor, str(tmp_path / name), print).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "poem.txt"]


# Descriptors by their names


@pytest.mark.parametrize(
    "name", ["/dev/fd/{}", "/proc/self/fd/{}", "/proc/thread-self/fd/{}", "/proc/{process}/fd/{}"]
)
@pytest.mark.parametrize("linked", [False, True])
def test_open_descriptor_is_appended_to(tmp_path: Path, name: str, *, linked: bool) -> None:
    """`-o /dev/fd/3 3>> log` goes on where the log is, and does not replace it."""
    log = tmp_path / "log"
    with log.open("wb", buffering=0) as file:
        file.write(b"title\n")
        os.set_inheritable(file.fileno(), True)
        path = Path(name.format(file.fileno(), process=os.getpid()))
        if linked:
            (tmp_path / "link").symlink_to(path)
            path = tmp_path / "link"
        assert save(path) == []
        file.write(b"\nend")
    assert log.read_bytes() == b"title\na poem\nend"


def test_closed_descriptor_is_an_error(tmp_path: Path) -> None:
    """The error has the descriptor's name."""
    with (tmp_path / "log").open("wb") as file:
        path = Path(f"/dev/fd/{file.fileno()}")
    with pytest.raises(OutputError, match="Bad file descriptor"):
        save(path)
