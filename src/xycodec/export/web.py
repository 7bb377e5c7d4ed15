"""A codec as a static web page: recording, codes, pictures and sound, all in the visitor's browser."""

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from xycodec.checkpoints.build import OwnCodec
from xycodec.errors import CheckpointError, reason_of
from xycodec.export.graphs import export_onnx
from xycodec.export.layout import ENCODER, About
from xycodec.io.files import new_folder

RUNTIME = "onnxruntime-web@1.22.0"
"""The npm package whose WebAssembly computes the graphs in the page."""
_RUNTIME_FILES = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
_PAGE = Path(__file__).with_name("page")


def export_web(codec: OwnCodec, folder: str | Path, *, overwrite: bool = False) -> About:
    """Write a page, the codec's graphs and their runtime, which npm fetches, into a new folder, whole or not at all.

    Any server of static files will do, `python -m http.server` too; the page asks for nothing else. `overwrite`
    replaces a folder that holds such a page. Raises CheckpointError if the folder exists, npm is not installed or
    cannot fetch, and as `export_onnx` does.
    """
    target = Path(folder)
    is_page = (target / "index.html").is_file() and (target / "model" / ENCODER).is_file()
    with new_folder(target, CheckpointError, replace=overwrite and is_page) as made:
        _fetch_runtime(made / "runtime")
        shutil.copytree(_PAGE, made, dirs_exist_ok=True)
        return export_onnx(codec, made / "model")


def _fetch_runtime(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise CheckpointError("npm is not installed: it fetches the page's runtime, install Node.js with it")
    with tempfile.TemporaryDirectory() as scratch:
        command = [npm, "pack", RUNTIME, "--silent", "--pack-destination", scratch]
        ran = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
        archives = list(Path(scratch).glob("*.tgz"))
        if ran.returncode or len(archives) != 1:
            reason = (ran.stderr.strip() or "no archive came").splitlines()[0]
            raise CheckpointError(f"npm cannot fetch {RUNTIME} ({reason}): check the network and try again")
        folder.mkdir()
        with tarfile.open(archives[0]) as archive:
            for name in _RUNTIME_FILES:
                try:
                    data = archive.extractfile(f"package/dist/{name}")
                except KeyError as error:
                    raise CheckpointError(f"{RUNTIME}: is not as expected ({reason_of(error)})") from None
                assert data is not None
                (folder / name).write_bytes(data.read())
