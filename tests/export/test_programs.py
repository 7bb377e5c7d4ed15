"""Programs of torch.export: saved, loaded where this package is not, and the codec's codes and audio."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from tests.exporting import CODECS, differing, make_codec, speech

from xycodec.errors import CheckpointError
from xycodec.export.programs import save_programs

QUICK = ("x-tower",)  # tests of graphs have an XY-Tokenizer
KINDS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in CODECS]
ELSEWHERE = """
import sys
import numpy as np, torch
folder = sys.argv[1]
encoder, decoder = (torch.export.load(f"{folder}/{name}.pt2").module() for name in ("encoder", "decoder"))
inputs = np.load(f"{folder}/inputs.npz")
results = {}
with torch.no_grad():
    for name, clip in inputs.items():
        codes = encoder(torch.from_numpy(clip))
        results[f"{name}.codes"], results[f"{name}.audio"] = codes.numpy(), decoder(codes).numpy()
np.savez(f"{folder}/results.npz", **results)
assert "xycodec" not in sys.modules
"""


@pytest.mark.parametrize("kind", KINDS)
def test_saved_programs_compute_what_the_codec_does(kind, tmp_path):
    codec = make_codec(kind)
    folder = tmp_path / "programs"
    save_programs(codec, folder)
    samples = [1, 7 * codec.hop_length - 3, 50 * codec.hop_length + 1, codec.window_samples]
    clips = {f"clip{n}": speech(n)[None].numpy() for n in samples}
    clips["batch"] = np.concatenate([speech(3000, seed)[None].numpy() for seed in range(3)])
    np.savez(folder / "inputs.npz", **clips)
    # Isolated: neither this tree nor what is installed in it can be imported by mistake.
    command = [sys.executable, "-P", "-c", ELSEWHERE, str(folder)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    results = np.load(folder / "results.npz")
    for name, batch in clips.items():
        codes, audio = results[f"{name}.codes"], results[f"{name}.audio"]
        for clip, item, heard in zip(batch, codes, audio, strict=True):
            differing(codec, torch.from_numpy(clip), item)
            np.testing.assert_allclose(heard, codec.decode(item).audio[0].numpy(), atol=1e-4, rtol=0)


def test_a_folder_that_exists_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="exists already"):
        save_programs(make_codec("x-tower"), tmp_path)
