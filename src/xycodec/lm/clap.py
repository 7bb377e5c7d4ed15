"""Text embeddings of CLAP, Transformers' class, as conditions of a model of sounds."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from xycodec.checkpoints.load import resolve_device
from xycodec.errors import CheckpointError, StoreError, reason_of
from xycodec.io.libraries import transformers_library
from xycodec.io.tokens.read import TokenStore
from xycodec.io.tokens.vectors import write_vectors

_UNLIKE = ("a dog barks in the distance", "an orchestra plays a slow waltz")
_MOST_ALIKE = 0.9


class ClapText:
    """The text branch of a CLAP model, by hub id or folder.

    Attributes:
        model: Transformers' `ClapModel`, whole.

    Raises CheckpointError, one line, if it cannot be had, or finds two unlike captions alike: some checkpoints collapse
    in some versions of Transformers.
    """

    def __init__(self, source: str, *, device: str = "auto") -> None:
        library = transformers_library()
        self.source = source
        try:
            self._tokenizer: Any = library.AutoTokenizer.from_pretrained(source)
            self.model: Any = library.ClapModel.from_pretrained(source).to(resolve_device(device)).eval()
        # Transformers has many names for a file that is missing or not its own.
        except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{source}: no CLAP model of Transformers ({reason_of(error)})") from None
        one, other = self.embed(_UNLIKE)
        if (alike := float(one @ other)) >= _MOST_ALIKE:
            raise CheckpointError(
                f"{source}: finds {_UNLIKE[0]!r} and {_UNLIKE[1]!r} alike (cosine {alike:.3f}), so that it tells no "
                "captions apart: use another checkpoint or version of transformers"
            )

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Vectors (N, D) of captions, float32 on the CPU, of length 1; each is computed by itself."""
        rows = []
        for text in texts:
            ids = self._tokenizer([text], return_tensors="pt", truncation=True).to(self.model.device)
            found = self.model.get_text_features(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"])
            rows.append(unit_vectors(found)[0])
        return torch.stack(rows)


def unit_vectors(found: Any) -> Tensor:
    """Vectors (N, D) of length 1, float32 on the CPU, of what a branch of CLAP gives."""
    # Transformers 5 gives an output whose pooler_output is what 4 gave; versions differ in its length.
    vectors: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return F.normalize(vectors.float(), dim=-1).cpu()


def describe_store(store: TokenStore, clap: ClapText, advance: Callable[[], None] = lambda: None) -> int:
    """Write the embedding of every clip's text into a store; returns how many there are.

    Raises StoreError if a clip has no text, or the vectors cannot be written.
    """
    rows: list[NDArray[Any]] = []
    for number in range(len(store)):
        meta = store.meta(number)
        text = meta.get("text")
        if not isinstance(text, str) or not text.strip():
            raise StoreError(f"{store.folder}: {meta['id']} has no text to embed: leave it out, or give it a caption")
        rows.append(clap.embed([text.strip()])[0].numpy())
        advance()
    if not rows:
        raise StoreError(f"{store.folder}: holds no clips: tokenize a corpus first")
    write_vectors(store, np.stack(rows), {"model": clap.source, "of": "text", "dim": len(rows[0])})
    return len(rows)
