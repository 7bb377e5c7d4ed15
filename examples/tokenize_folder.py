"""A folder of recordings as lines of tokens for a language model, and those lines as recordings again.

    python examples/tokenize_folder.py recordings tokens.jsonl
    python examples/tokenize_folder.py tokens.jsonl decoded

Each line is `{"name": ..., "num_samples": ..., "tokens": [...]}`. Tokens go frame by frame, codebook by codebook, and
each codebook has a range of its own: code c of codebook q is q * codebook_size + c. For files of codes without a
program, use `xycodec encode`.
"""

import argparse
import json
from pathlib import Path

import torch

from xycodec import Codec, decode_long, read_audio, write_audio
from xycodec.io.audio import audio_files


def to_tokens(codes: torch.Tensor, codebook_size: int) -> list[int]:
    """Flatten codes (n_q, L) into n_q * L tokens."""
    offsets = torch.arange(codes.shape[0])[:, None] * codebook_size
    return (codes + offsets).T.flatten().tolist()


def to_codes(tokens: list[int], n_q: int, codebook_size: int) -> torch.Tensor:
    """The codes (n_q, L) that `to_tokens` flattened."""
    return torch.tensor(tokens).reshape(-1, n_q).T % codebook_size


def encode(codec: Codec, folder: Path, target: Path) -> None:
    """Write a line of tokens for every recording below `folder`."""
    with target.open("w", encoding="utf-8") as lines:
        for path in audio_files(folder):
            audio = read_audio(path, codec.input_sample_rate)
            tokens = to_tokens(codec.encode(audio).codes[0], codec.codebook_size)
            name = str(path.relative_to(folder).with_suffix(""))
            lines.write(json.dumps({"name": name, "num_samples": len(audio), "tokens": tokens}) + "\n")
            print(f"{path}: {len(audio) / codec.input_sample_rate:.1f} s, {len(tokens)} tokens")


def decode(codec: Codec, source: Path, folder: Path) -> None:
    """Write a WAV of every line of tokens."""
    for line in source.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        codes = to_codes(row["tokens"], codec.n_q, codec.codebook_size)
        target = folder / f"{row['name']}.wav"
        target.parent.mkdir(parents=True, exist_ok=True)
        audio = decode_long(codec, codes, num_samples=row["num_samples"])
        write_audio(target, audio, codec.output_sample_rate)
        print(target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a folder of audio, or a file of tokens")
    parser.add_argument("target", type=Path, help="the file of tokens, or a folder for audio")
    parser.add_argument(
        "--model", default="xy-mini", help="a name, folder, checkpoint or hub id (default: %(default)s)"
    )
    args = parser.parse_args()
    work = encode if args.source.is_dir() else decode
    work(Codec.from_pretrained(args.model), args.source, args.target)
