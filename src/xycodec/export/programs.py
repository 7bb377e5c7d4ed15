"""A codec's encoder and decoder as programs of `torch.export`, which PyTorch runs without this package.

A program computes a batch of clips of equal length, none longer than the codec's window, each as if it were alone.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as shape_settings
from torch.nn import functional as F

from xycodec.checkpoints.build import OwnCodec
from xycodec.errors import CheckpointError
from xycodec.export.parts import MARGIN, twin
from xycodec.io.files import new_folder
from xycodec.models.speech_tokenizer.model import SpeechTokenizer
from xycodec.models.xcodec.model import XCodec


class Programs(NamedTuple):
    """Two programs.

    encoder: audio (B, T) float32 -> codes (B, n_q, L) int64; decoder: codes (B, k, L) of k <= n_q layers -> (B, T).
    """

    encoder: ExportedProgram
    decoder: ExportedProgram


def export_programs(codec: OwnCodec) -> Programs:
    """Programs of both halves of a codec, with its weights. B, T, L and k may be any from 1 to the window's size.

    Raises CheckpointError unless the codec is in float32 and follows the length-true rules, and of a SpeechTokenizer.
    """
    if isinstance(codec, SpeechTokenizer):
        raise CheckpointError(f"{codec.model_id}: a SpeechTokenizer cannot be exported: choose one of the other models")
    if codec.reference or any(part.dtype is not torch.float32 for part in codec.parameters()):
        raise CheckpointError(f"{codec.model_id}: only a float32 codec without reference rules can be exported")
    is_x = isinstance(codec, XCodec)
    encoder, decoder = (_XEncoder, _XDecoder) if is_x else (_XYEncoder, _XYDecoder)
    samples, frames = 2 * codec.hop_length + 1, 3
    batch = Dim("batch", min=1)
    audio_shape = {0: batch, 1: Dim("samples", min=1, max=codec.window_samples)}
    codes_shape = {0: batch, 1: Dim("layers", min=1, max=codec.n_q), 2: Dim("frames", min=1, max=codec.window_frames)}
    codes = torch.zeros(2, min(2, codec.n_q), frames, dtype=torch.int64)
    return Programs(
        _exported(encoder(codec), torch.zeros(2, samples), audio_shape),
        _exported(decoder(codec), codes, codes_shape),
    )


def _exported(half: nn.Module, example: Tensor, shape: dict[int, Dim]) -> ExportedProgram:
    # Else the program would hold for one clip or for several, and for one frame or for more, not for all of them.
    any_size = shape_settings.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), any_size:
        program = torch.export.export(
            half, (example,), dynamic_shapes=(shape,), prefer_deferred_runtime_asserts_over_guards=True
        )
    # What torch took for granted of the example's shape. It changes no operator, which tests of other shapes show.
    graph = program.graph_module.graph
    for node in reversed(graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def save_programs(codec: OwnCodec, folder: str | Path) -> None:
    """Write `encoder.pt2` and `decoder.pt2`, which `torch.export.load` reads, into a new folder."""
    with new_folder(Path(folder), CheckpointError) as made:
        programs = export_programs(codec)
        torch.export.save(programs.encoder, made / "encoder.pt2")
        torch.export.save(programs.decoder, made / "decoder.pt2")


class _Half(nn.Module):
    """One half of a codec: its parts that have `names`, those that have a twin for export in that form."""

    def __init__(self, codec: OwnCodec, *names: str) -> None:
        super().__init__()
        made: Any = twin(codec)
        made._modules = {name: part for name, part in made._modules.items() if name in names}
        self.codec = made

    def frames(self, audio: Tensor) -> int:
        """Code frames of audio (B, T)."""
        hop: int = self.codec.hop_length
        return (audio.shape[1] + hop - 1) // hop


class _XYEncoder(_Half):
    def __init__(self, codec: OwnCodec) -> None:
        towers = ("acoustic_encoder", "semantic_encoder", "semantic_encoder_adapter")
        super().__init__(codec, "mel", *towers, "pre_rvq_adapter", "downsample", "quantizer")

    def forward(self, audio: Tensor) -> Tensor:
        codec = self.codec
        frames = self.frames(audio)
        factor = codec.downsample.factor
        room = 2 * factor * codec.window_frames
        hops = torch.sym_min(2 * factor * frames + MARGIN, room)  # type: ignore[no-untyped-call]
        mel = codec.mel(F.pad(audio, (0, hops * codec.mel.hop_length - audio.shape[1])))
        latents, _ = codec.latents_of(mel, factor * frames)
        codes: Tensor = codec.quantizer.encode(latents)
        return codes


class _XYDecoder(_Half):
    def __init__(self, codec: OwnCodec) -> None:
        super().__init__(codec, "quantizer", "post_rvq_adapter", "upsample", "acoustic_decoder", "vocos")

    def forward(self, codes: Tensor) -> Tensor:
        audio: Tensor = self.codec.decode_latents(self.codec.quantizer.decode(codes))
        return audio


class _XEncoder(_Half):
    def __init__(self, codec: OwnCodec) -> None:
        super().__init__(codec, "acoustic_encoder", "semantic_model", "semantic_encoder", "fusion", "quantizer")

    def forward(self, audio: Tensor) -> Tensor:
        codec = self.codec
        audio = F.pad(audio, (0, self.frames(audio) * codec.hop_length - audio.shape[1]))
        latents = codec.acoustic_encoder(audio[:, None]).transpose(1, 2)
        if codec.config.semantic is not None:
            features = codec.semantic_features(audio).transpose(1, 2)
            latents = codec.fusion(torch.cat([latents, codec.semantic_encoder(features).transpose(1, 2)], dim=-1))
        codes: Tensor = codec.quantizer.encode(latents)
        return codes


class _XDecoder(_Half):
    def __init__(self, codec: OwnCodec) -> None:
        super().__init__(codec, "quantizer", "acoustic_proj", "acoustic_decoder")

    def forward(self, codes: Tensor) -> Tensor:
        audio: Tensor = self.codec.decode_latents(self.codec.quantizer.decode(codes))
        return audio
