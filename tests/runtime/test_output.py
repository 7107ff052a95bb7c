"""Standard output that goes away ends nothing; every other trouble with it is an error."""

import os
import resource
from pathlib import Path

import pytest

from finetuning.runtime.output import open_output, what_was_lost

pytestmark = pytest.mark.unit


def test_a_closed_terminal_and_a_pipe_without_a_reader_swallow_what_is_printed() -> None:
    keyboard, terminal = os.openpty()
    reader, pipe = os.pipe()
    for descriptor, other_end in ((terminal, keyboard), (pipe, reader)):
        output = open_output(descriptor)
        output.write("seen\n")
        output.flush()
        assert os.read(other_end, 100).split() == [b"seen"]
        os.close(other_end)
        print("not seen", file=output, flush=True)
        output.close()
        os.close(descriptor)


def test_a_full_disk_swallows_what_is_printed_and_it_is_told(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    descriptor = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    output = open_output(descriptor)
    print("seen", file=output)
    assert what_was_lost(output) is None
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))
        print("not seen", file=output, flush=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    print("again", file=output)
    assert what_was_lost(output) == "no room left for what is printed (File too large); a part of it is missing"
    assert (tmp_path / "file").read_bytes().startswith(b"seen\nnot")
    assert (tmp_path / "file").read_bytes().endswith(b"again\n")
    os.close(descriptor)


def test_another_trouble_than_a_lost_reader_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = open_output(os.open(tmp_path / "file", os.O_RDONLY))
    with pytest.raises(OSError, match="Bad file descriptor"):
        output.buffer.raw.write(b"x")


def test_characters_that_the_encoding_lacks_become_question_marks(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    with open_output(descriptor, "ascii") as output:
        output.write("中 a")
    assert (tmp_path / "file").read_bytes() == b"? a"
