"""A column of codes for a dataset of Hugging Face, by `Dataset.map`.

    python examples/tokenize_dataset.py recordings coded

`recordings` is a folder of audio; `coded` is where the dataset goes, which `datasets.load_from_disk` opens.
For corpora of hours use `xycodec tokenize`, which goes on after a kill.
"""

import argparse
import io
from pathlib import Path

from datasets import Audio, Dataset

from xycodec import Codec, read_audio
from xycodec.io.audio import audio_files


def main() -> None:
    """Make a dataset of a folder, and map it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("target")
    parser.add_argument("--model", default="xy-mini")
    args = parser.parse_args()
    codec = Codec.from_pretrained(args.model)

    def with_codes(rows: dict) -> dict:
        """Codes (frames, n_q) of a batch of clips, each as if alone."""
        clips = [read_audio(io.BytesIO(one["bytes"]), codec.input_sample_rate) for one in rows["audio"]]
        made = codec.encode(clips)
        return {"codes": [codes[:, :length].T.tolist() for codes, length in zip(made.codes, made.lengths, strict=True)]}

    rows = [{"audio": {"bytes": path.read_bytes(), "path": path.name}} for path in audio_files(args.folder)]
    # Not decoded by datasets, so that every file is read as xycodec reads it.
    dataset = Dataset.from_list(rows).cast_column("audio", Audio(decode=False))
    coded = dataset.map(with_codes, batched=True, batch_size=16)
    coded.save_to_disk(args.target)
    print(f"{args.target}: {len(coded)} clips, columns {', '.join(coded.column_names)}")


if __name__ == "__main__":
    main()
