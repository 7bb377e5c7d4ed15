"""Facts that follow from the few numbers of a codec, and whether a file of codes is its own: without torch."""

from math import ceil, log2

from xycodec.errors import BitstreamError
from xycodec.io.xyc import CodecFile


class CodecFacts:
    """Facts on a codec: Hz, sizes, and how many frames and samples belong to each other."""

    model_id: str
    input_sample_rate: int
    output_sample_rate: int
    n_q: int
    codebook_size: int
    hop_length: int
    window_frames: int

    @property
    def frame_rate(self) -> float:
        """Code frames a second."""
        return self.input_sample_rate / self.hop_length

    @property
    def bitrate(self) -> float:
        """Bits a second with all codebooks."""
        return self.frame_rate * self.n_q * log2(self.codebook_size)

    @property
    def window_samples(self) -> int:
        """Input samples that the model computes in one piece; longer clips go through several."""
        return self.window_frames * self.hop_length

    def num_frames(self, num_samples: int) -> int:
        """Code frames of a clip of `num_samples` input samples: the last partial frame counts."""
        return ceil(num_samples / self.hop_length)

    def num_output_samples(self, num_samples: int) -> int:
        """Samples at the output rate that last as long as `num_samples` at the input rate."""
        return ceil(num_samples * self.output_sample_rate / self.input_sample_rate)

    def require_own(self, file: CodecFile, name: str, *, any_model: bool = False) -> None:
        """Raise BitstreamError unless this model made `file`, called `name`.

        `any_model` skips the comparison of names, for models that share their codes; their shape must fit all the same.
        """
        if file.model != self.model_id and not any_model:
            raise BitstreamError(
                f"{name}: its codes are from model {file.model!r}, not {self.model_id!r}; "
                "name that model, or pass --any-model if the two share their codes"
            )
        wanted = (self.codebook_size, self.hop_length, self.input_sample_rate)
        if (file.codebook_size, file.hop_length, file.sample_rate) != wanted or file.n_q > self.n_q:
            raise BitstreamError(f"{name}: its codes do not have the shape of model {self.model_id!r}")
