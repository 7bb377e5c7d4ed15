"""Batches of clips of mixed lengths from a DataLoader: their codes, and one vector a clip.

    python examples/encode_batches.py recordings --batch 8 --workers 2

Padding changes nothing: each clip gets the codes that it has alone, which `--check` shows.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from xycodec import Codec, read_audio
from xycodec.io.audio import audio_files


class Clips(Dataset[tuple[str, Tensor]]):
    """Recordings of a folder at one rate: (name, audio (T,))."""

    def __init__(self, folder: Path, rate: int) -> None:
        self.paths, self.rate = audio_files(folder), rate

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        return self.paths[index].name, torch.from_numpy(read_audio(self.paths[index], self.rate))


def collate(items: list[tuple[str, Tensor]]) -> tuple[list[str], Tensor, Tensor]:
    """Names, audio (B, T) padded with zeros, lengths (B,)."""
    names, clips = zip(*items, strict=True)
    return list(names), pad_sequence(list(clips), batch_first=True), torch.tensor([len(clip) for clip in clips])


def main(folder: Path, model: str, batch: int, workers: int, check: bool) -> None:
    """Print each clip's number of frames and the size of its mean embedding."""
    codec = Codec.from_pretrained(model)
    clips = Clips(folder, codec.input_sample_rate)
    for names, audio, lengths in DataLoader(clips, batch, num_workers=workers, collate_fn=collate):
        out = codec.encode(audio, lengths)  # codes (B, n_q, L), zero past each clip's end
        vectors = codec.embed(out).sum(-1) / out.lengths[:, None]  # (B, D)
        for i, name in enumerate(names):
            print(f"{name}: {out.lengths[i]} frames of {codec.n_q} codes, a vector of {vectors.shape[1]}")
            if check:
                alone = codec.encode(audio[i, : lengths[i]]).codes[0]
                if not torch.equal(alone, out.codes[i, :, : out.lengths[i]]):
                    raise SystemExit(f"{name}: other codes alone than in the batch")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--model", default="xy-mini", help="a name, folder, checkpoint or hub id (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0, help="processes that read audio")
    parser.add_argument("--check", action="store_true", help="compare with each clip encoded alone")
    args = parser.parse_args()
    main(args.folder, args.model, args.batch, args.workers, args.check)
