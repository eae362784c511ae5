"""Writing a program to the cache and importing it from there; the helpers that a file defines."""

import stat

import pytest
import torch
import torch.nn.functional as F

from hbpcompiler.codegen.definitions import definitions
from hbpcompiler.codegen.load import load, program, write
from hbpcompiler.compiler.program.products import onednn_linear, product_over_pixels
from hbpcompiler.compiler.program.writer import Writer
from hbpcompiler.errors import CompileError
from hbpcompiler.system.cache import cache_folder, store

CODE = "class Program:\n    def __call__(self):\n        return 42\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HBP_CACHE_DIR", str(tmp_path / "own"))
    return tmp_path / "own"


def test_the_folder_is_the_users_alone(folder):
    assert cache_folder() == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_others_write_to_is_refused(folder):
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(CompileError, match="writable by others"):
        cache_folder()


def test_the_users_cache_without_the_variable(monkeypatch, tmp_path):
    monkeypatch.delenv("HBP_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hbpcompiler"


def test_a_file_is_stored_as_a_whole(folder):
    path = cache_folder() / "text"
    store(path, "ä\n")
    store(path, "other\n")
    assert path.read_text(encoding="utf-8") == "other\n"
    assert [file.name for file in folder.iterdir()] == ["text"]


def test_one_text_is_one_file():
    assert write(CODE) == write(CODE) != write(CODE + "\n")


def test_a_file_that_was_changed_is_written_again():
    path = write(CODE)
    path.write_text("raise OSError")
    assert write(CODE).read_text() == CODE


def test_the_program_is_imported_from_its_file():
    made, path = program(CODE)
    assert made() == 42
    module, again = load(CODE)
    assert module.__file__ == str(path) == str(again)


def helpers(*calls):
    writer = Writer()
    x = writer.placeholder("x")

    def body(part):
        for target in calls:
            part.totals["t"].add_(part.writer.call(target, part["x"], part["x"]).sum())

    writer.loop(body, op=None, sliced={"x": x}, chunk=1, totals={"t": ()})
    return "\n".join(definitions(writer.graph))


def test_helpers_that_are_called_are_defined_once_even_within_loops():
    text = helpers(onednn_linear, onednn_linear)
    assert text.count("def onednn_linear") == 1
    assert "product_over_pixels" not in text
    assert "noqa" not in text
    assert "type: ignore" not in text
    assert helpers(F.linear) == ""


def test_a_defined_helper_computes_what_ours_does():
    scope = {"torch": torch, "F": F, "Tensor": torch.Tensor}
    exec(helpers(product_over_pixels), scope)
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 5), torch.randn(2, 4, 5)
    torch.testing.assert_close(scope["product_over_pixels"](x, y), torch.einsum("nop,nip->oi", x, y))
