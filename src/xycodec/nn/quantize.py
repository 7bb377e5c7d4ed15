"""Residual vector quantizer whose codebooks follow their data by moving averages.

See docs/models/xy_tokenizer.md, Quantizer.

Everything here is float32 whatever the rest of the model runs in. Training differs from the published code
where that is wrong (docs/models/xy_tokenizer.md, Quantizer): only valid frames count, one process is a valid
world size, and codebook, sum and count always move together.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.distributed import all_reduce_, rank, rank_offsets, world_size
from xycodec.nn.deterministic.linear import Linear
from xycodec.nn.folding import fold_weight_norms, weight_norm
from xycodec.nn.mean import Mean
from xycodec.nn.nearest import nearest, search

EPSILON = 1e-5  # Laplace smoothing of the counts
RARE = 0.1  # share of its layer's average count that makes a code alive wherever vectors are few
GRACE = 2.0  # a new code's count, in thresholds: at decay 0.99 it has 69 steps to be chosen

BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class QuantizerOutput:
    """Quantized vectors, codes and losses of one pass of the quantizer."""

    quantized: Tensor
    """(B, T, dim) float32; padded frames hold the bias of the output map."""
    codes: Tensor
    """(B, layers that ran, T) int64; 0 on padded frames, where a code has no meaning."""
    commitment_loss: Mean
    """One entry per layer that ran: mean over valid frames and channels."""
    counts: Tensor
    """(n_q, codebook_size) float32: how often each code was used in the batch of this process."""
    first: Tensor
    """(B, T, codebook_dim) float32: vectors of the first codebook alone, before the output map; 0 on padded frames."""


class Gathered(NamedTuple):
    """Vectors (N, D) to quantize, the layers (n_q, N) each uses, and the codes (layers, N) of the layers that ran.

    `sizes` are the numbers of vectors of the micro-batches that they come from.
    """

    vectors: Tensor
    active: Tensor
    codes: Tensor
    sizes: tuple[int, ...]


def codebook_usage(counts: Tensor) -> Tensor:
    """Share of codes used at least once, per layer: (n_q, K) counts -> (n_q,) in [0, 1]."""
    return (counts > 0).float().mean(dim=-1)


def codebook_perplexity(counts: Tensor) -> Tensor:
    """exp(entropy) of the code distribution, per layer: (n_q, K) counts -> (n_q,) in [1, K]; 0 if unused."""
    total = counts.sum(dim=-1, keepdim=True)
    p = counts / total.clamp_min(1)
    return torch.where(total[..., 0] > 0, torch.special.entr(p).sum(dim=-1).exp(), 0.0)


class ResidualVectorQuantizer(nn.Module):
    """Weight-normed map in, `n_q` codebooks on successive residuals, weight-normed map out.

    `codebook_dim` None gives codebooks as wide as the input, and no maps.

    Buffers of all layers are stacked: `codebook` and `embed_avg` (n_q, K, D), `cluster_size` (n_q, K) and
    `inited` (n_q,). In training mode with gradients enabled, each forward pass moves them, or all passes within
    `one_step` together; in eval mode they are frozen. `commit_every_layer` gives each layer's commitment loss a
    gradient to the encoder; the published code, by subtracting an undetached straight-through value, gives it to the
    first layer's only.
    """

    codebook: Tensor
    embed_avg: Tensor
    cluster_size: Tensor
    inited: Tensor

    def __init__(
        self,
        *,
        input_dim: int,
        n_q: int,
        codebook_size: int,
        codebook_dim: int | None,
        decay: float = 0.99,
        dead_code_threshold: float = 2.0,
        kmeans_iterations: int = 10,
        dropout: float = 0.0,
        commitment: Literal["l1", "l2"] = "l2",
        commit_every_layer: bool = True,
    ) -> None:
        super().__init__()
        self.n_q, self.codebook_size = n_q, codebook_size
        self.decay, self.dead_code_threshold = decay, dead_code_threshold
        self.kmeans_iterations = kmeans_iterations
        self.dropout, self.commitment, self.commit_every_layer = dropout, commitment, commit_every_layer
        width = codebook_dim or input_dim
        self.input_proj, self.output_proj = _maps(input_dim, codebook_dim)
        self.register_buffer("codebook", torch.zeros(n_q, codebook_size, width))
        self.register_buffer("embed_avg", torch.zeros(n_q, codebook_size, width))
        self.register_buffer("cluster_size", torch.zeros(n_q, codebook_size))
        self.register_buffer("inited", torch.zeros(n_q, dtype=torch.bool))
        # `inited` as the host knows it, so that a training step need not ask the device.
        self._ready = False
        self._gathered: list[Gathered] | None = None
        self.register_load_state_dict_post_hook(_forget_ready)  # type: ignore[no-untyped-call]

    def fold_weight_norm(self) -> None:
        """Replace weight-normed maps by plain ones, for inference."""
        fold_weight_norms(self)

    # ---- inference -----------------------------------------------------------------------------

    def encode(self, x: Tensor, n_q: int, width: int = 1) -> Tensor:
        """(B, T, input_dim) -> codes (B, n_q, T) int64 of the first `n_q` layers.

        A `width` above 1 searches for the `n_q` codes that sum up nearest to the mapped input, by a beam of so many.
        """
        with torch.autocast(x.device.type, enabled=False):
            vectors = self.input_proj(x.float()).flatten(0, 1)
            codes = self._quantize(vectors, n_q)[0] if width == 1 else search(vectors, self.codebook[:n_q], width)
        return codes.view(n_q, *x.shape[:2]).transpose(0, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, k, T) of the first k <= n_q layers -> (B, T, input_dim) float32."""
        with torch.autocast(codes.device.type, enabled=False):
            out: Tensor = self.output_proj(self.sum_codebooks(codes))
        return out

    def sum_codebooks(self, codes: Tensor) -> Tensor:
        """Codes (B, k, T) -> the sum of their codebook vectors, (B, T, codebook_dim)."""
        total = F.embedding(codes[:, 0], self.codebook[0])
        for layer in range(1, codes.shape[1]):
            total = total + F.embedding(codes[:, layer], self.codebook[layer])
        return total

    def _quantize(self, residual: Tensor, n_q: int) -> tuple[Tensor, list[Tensor]]:
        """(N, D) -> codes (n_q, N), and the input of every layer (the residuals) as n_q tensors (N, D)."""
        codes, residuals = [], []
        for codebook in self.codebook[:n_q]:
            index = nearest(residual, codebook)
            codes.append(index)
            residuals.append(residual)
            residual = residual - codebook[index]
        return torch.stack(codes), residuals

    # ---- training ------------------------------------------------------------------------------

    def forward(self, x: Tensor, mask: Tensor | None = None, n_q: int | None = None) -> QuantizerOutput:
        """Quantize (B, T, input_dim); frames where `mask` (B, T) is False count for nothing.

        `n_q` of the layers run (None: all), and only those learn; the first batch gives them all their start. It must
        be equal on all processes. The quantized values pass their gradient straight to the input.
        """
        with torch.autocast(x.device.type, enabled=False):
            return self._forward(x.float(), mask, self.n_q if n_q is None else n_q)

    def _forward(self, x: Tensor, mask: Tensor | None, n_q: int) -> QuantizerOutput:
        b, t, _ = x.shape
        projected = self.input_proj(x).flatten(0, 1)
        valid = self._valid_frames(mask, b * t, x.device)
        vectors = projected[valid]
        gathering = self.training and self._gathered is not None
        learning = self.training and torch.is_grad_enabled() and not gathering
        active = self._active_layers(b, x.device).repeat_interleave(t, dim=1)[:, valid]
        with torch.no_grad():
            if learning and not self._ready:
                self._ready = self._initialise(vectors.detach(), active, (len(vectors),))
            index, residuals = self._quantize(vectors.detach(), n_q)
            if self._gathered is not None and gathering:
                self._gathered.append(Gathered(vectors.detach(), active, index, (len(vectors),)))
            active = active[:n_q]
            counts = self._counts(index, active)
            chosen = [book[i] for book, i in zip(self.codebook[:n_q], index, strict=True)]
        # Zero, with the input's gradient: values stay exactly those of the codes.
        straight_through = vectors - vectors.detach()
        inputs = torch.stack(residuals)
        loss = self._commitment(inputs - torch.stack(chosen), straight_through, active)
        total = chosen[0] * active[0, :, None]
        for vectors, used in zip(chosen[1:], active[1:], strict=True):
            total = total + vectors * used[:, None]
        if learning:
            self._follow(inputs, index, active, counts, (len(vectors),))
        padded = torch.zeros_like(projected).index_put((valid,), total + straight_through)
        first = torch.zeros_like(projected).index_put((valid,), chosen[0] + straight_through)
        codes = torch.zeros(n_q, b * t, dtype=torch.int64, device=x.device)
        codes[:, valid] = index
        return QuantizerOutput(
            quantized=self.output_proj(padded.view(b, t, -1)),
            codes=codes.view(n_q, b, t).transpose(0, 1),
            commitment_loss=loss,
            counts=F.pad(counts, (0, 0, 0, self.n_q - n_q)),
            first=first.view(b, t, -1),
        )

    @staticmethod
    def _valid_frames(mask: Tensor | None, total: int, device: torch.device) -> Tensor:
        # A mask that lives on the CPU is turned into indices there: no host synchronisation.
        if mask is None:
            return torch.arange(total, device=device)
        return mask.flatten().nonzero()[:, 0].to(device, non_blocking=True)

    def _active_layers(self, batch: int, device: torch.device) -> Tensor:
        """(n_q, B) bool: the layers each item uses. Dropout keeps 1 to n_q for the first share of items."""
        kept = torch.full((batch,), self.n_q, device=device)
        dropped = int(batch * self.dropout) if self.training else 0
        if dropped:
            kept[:dropped] = torch.randint(1, self.n_q + 1, (dropped,), device=device)
        return torch.arange(self.n_q, device=device)[:, None] < kept

    def _commitment(self, difference: Tensor, straight_through: Tensor, active: Tensor) -> Mean:
        """Mean distance over frames and channels, per layer, from `difference` (layers, N, D) of inputs and codes."""
        reaching = self.n_q if self.commit_every_layer else 1
        difference = torch.cat([difference[:reaching] + straight_through, difference[reaching:]])
        distance = difference.abs() if self.commitment == "l1" else difference.square()
        return Mean((distance.mean(dim=2) * active).sum(dim=1), active.sum(dim=1).float())

    def _counts(self, index: Tensor, active: Tensor) -> Tensor:
        counts = torch.zeros(len(index), self.codebook_size, device=index.device)
        return counts.scatter_add_(1, index, active.to(counts.dtype))

    def _sums(self, index: Tensor, vectors: Tensor) -> Tensor:
        """Per code, the sum of the vectors (layers, N, D) assigned to it: (layers, K, D)."""
        layers = len(index)
        flat = index + torch.arange(layers, device=index.device)[:, None] * self.codebook_size
        sums = torch.zeros_like(self.codebook[:layers]).flatten(0, 1)
        return sums.index_add_(0, flat.flatten(), vectors.flatten(0, 1)).view(layers, self.codebook_size, -1)

    @contextmanager
    def one_step(self, batches: Sequence[BatchT], run: Callable[[BatchT], object]) -> Iterator[None]:
        """Context of a step's micro-batches: codebooks stand still in it, then follow all of them as one batch.

        Where they hold nothing yet, `run` is called on every batch first, without gradients, so that k-means sees
        all of them; random numbers go on as if it had not been. All processes take part, with as many batches each.
        A single batch is left to `forward`.
        """
        if len(batches) == 1:
            yield
            return
        if self.training and not self._ready:
            self._start_from(batches, run)
        with self._gathering() as gathered:
            yield
        if gathered:
            vectors, active, index, sizes = _joined(gathered)
            inputs = [vectors]
            for codebook, chosen in zip(self.codebook, index[:-1], strict=False):
                inputs.append(inputs[-1] - codebook[chosen])
            active = active[: len(index)]
            self._follow(torch.stack(inputs), index, active, self._counts(index, active), sizes)

    @torch.no_grad()
    def _start_from(self, batches: Sequence[BatchT], run: Callable[[BatchT], object]) -> None:
        device = self.codebook.device
        self._ready = bool(self.inited.all())
        if self._ready:
            return
        with self._gathering() as gathered, torch.random.fork_rng([device] if device.type == "cuda" else []):
            for batch in batches:
                run(batch)
        if gathered:
            vectors, active, _, sizes = _joined(gathered)
            self._ready = self._initialise(vectors, active, sizes)

    @contextmanager
    def _gathering(self) -> Iterator[list[Gathered]]:
        """Let forward passes in training leave to the caller what their codebooks would follow."""
        gathered: list[Gathered] = []
        self._gathered = gathered
        try:
            yield gathered
        finally:
            self._gathered = None

    @torch.no_grad()
    def _follow(self, inputs: Tensor, index: Tensor, active: Tensor, counts: Tensor, sizes: Sequence[int]) -> None:
        """Move the codebooks of `inputs` (layers, N, D) towards these, and give dead codes a new start."""
        sums = self._sums(index, inputs * active[..., None])
        fresh = self._draw(inputs, sizes)
        # One collective for all layers and all three statistics.
        packed = all_reduce_(torch.cat([counts[..., None], sums, fresh], dim=-1))
        counts, sums, fresh = torch.split(packed, [1, sums.shape[-1], sums.shape[-1]], dim=-1)
        counts = counts[..., 0]
        # A layer that saw no frame at all stays as it is.
        seen = counts.sum(dim=1, keepdim=True) > 0
        rate = (1 - self.decay) * seen
        codebook, embed_avg, cluster_size = self._first(len(inputs))
        cluster_size.lerp_(counts, rate)
        embed_avg.lerp_(sums, rate[..., None])
        moved = embed_avg / smoothed_counts(cluster_size)[..., None]
        codebook.copy_(torch.where(seen[..., None], moved, codebook))
        self._replace(fresh, seen)

    def _first(self, layers: int) -> tuple[Tensor, Tensor, Tensor]:
        """Codebook, sum and count of the first `layers`, to be moved together."""
        return self.codebook[:layers], self.embed_avg[:layers], self.cluster_size[:layers]

    def _replace(self, fresh: Tensor, seen: Tensor) -> None:
        """Start dead codes afresh from `fresh` (layers, K, D), in the layers that have `seen` (layers, 1) a frame."""
        codebook, embed_avg, cluster_size = self._first(len(fresh))
        threshold = self._threshold(cluster_size)
        dead = (cluster_size < threshold) & seen
        count = (GRACE * threshold).expand_as(cluster_size)
        codebook.copy_(torch.where(dead[..., None], fresh, codebook))
        embed_avg.copy_(torch.where(dead[..., None], fresh * count[..., None], embed_avg))
        cluster_size.copy_(torch.where(dead, count, cluster_size))

    def _threshold(self, counts: Tensor) -> Tensor:
        """The count (n_q, 1) below which a code of `counts` (n_q, K) is dead."""
        # Where batches hold few vectors per code, every code lies below the absolute threshold.
        return (RARE * counts.mean(dim=-1, keepdim=True)).clamp_max(self.dead_code_threshold)

    def _initialise(self, vectors: Tensor, active: Tensor, sizes: Sequence[int]) -> bool:
        """k-means of the first batch, layer after layer, over the vectors of all processes.

        True once the codebooks hold something: not after a batch without a single valid frame.
        """
        if bool(self.inited.all()):
            return True
        _, total = rank_offsets(torch.tensor(vectors.shape[0], device=vectors.device))
        if not total:
            return False
        residual = vectors
        for layer in range(self.n_q):
            vectors = residual[active[layer]]
            parts = [int(part.sum()) for part in torch.split(active[layer], list(sizes))]
            means = all_reduce_(self._draw(vectors[None], parts)[0])
            for _ in range(self.kmeans_iterations):
                means, _ = self._lloyd(vectors, means)
            _, counts = self._lloyd(vectors, means)
            # Empty clusters have as long as replaced codes to be chosen: all but a few are empty where a small first
            # batch leaves this layer nothing but zeros. Never replaced, they need a count that outlasts smoothing.
            grace = GRACE * self._threshold(counts) if self.dead_code_threshold > 0 else torch.ones_like(counts)
            counts = torch.where(counts > 0, counts, grace)
            self.codebook[layer] = means
            self.cluster_size[layer] = counts
            # The sum that belongs to the counts (published: the mean itself, which shrinks the code at once).
            self.embed_avg[layer] = means * counts[:, None]
            residual = residual - means[nearest(residual, means)]
        self.inited.fill_(True)
        return True

    def _lloyd(self, vectors: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
        """One iteration: new means (empty clusters keep theirs) and the counts of the assignment to `means`."""
        index = nearest(vectors, means)
        sums = torch.zeros_like(means).index_add_(0, index, vectors)
        counts = torch.zeros_like(means[:, :1]).index_add_(0, index, torch.ones_like(vectors[:, :1]))
        packed = all_reduce_(torch.cat([sums, counts], dim=1))
        sums, counts = packed[:, :-1], packed[:, -1:]
        return torch.where(counts > 0, sums / counts.clamp_min(1), means), counts[:, 0]

    def _draw(self, vectors: Tensor, sizes: Sequence[int]) -> Tensor:
        """`codebook_size` random vectors per layer, out of all processes' `vectors` (layers, N, D).

        Returns this process's share (layers, codebook_size, D), the sum over processes is the draw. The vectors are
        cut into as many strata as there are codes, and one is drawn from each, so none repeats while there are
        enough. They stand in the order of their micro-batches, of `sizes` here, and in each of the processes: the
        draw is that of one process with all of every micro-batch.
        """
        layers, count, _ = vectors.shape
        k, device = self.codebook_size, vectors.device
        counts, random = _share_counts_and_draw(sizes, (2, layers, k), device)
        total, own = counts.sum(), counts[:, rank()]
        places = (counts.flatten().cumsum(0) - counts.flatten()).view(counts.shape)[:, rank()].contiguous()
        if not count:
            return vectors.new_zeros(layers, k, vectors.shape[2])
        stratum = random[0].argsort(dim=1)
        first, end = (stratum * total + k - 1) // k, ((stratum + 1) * total + k - 1) // k
        within = (random[1] * (end - first)).long()
        index = (first + within).minimum(end - 1).clamp_min(0)
        part = torch.searchsorted(places, index, right=True).sub(1).clamp_min(0)
        within = index - places[part]
        mine = (within >= 0) & (within < own[part])
        local = (own.cumsum(0)[part] - own[part] + within).clamp(0, count - 1)
        return vectors.gather(1, local[..., None].expand(-1, -1, vectors.shape[2])) * mine[..., None]


def _joined(parts: Sequence[Gathered]) -> Gathered:
    vectors, active, index, sizes = zip(*parts, strict=True)
    return Gathered(torch.cat(vectors), torch.cat(active, dim=1), torch.cat(index, dim=1), sum(sizes, ()))


def smoothed_counts(cluster_size: Tensor) -> Tensor:
    """Counts (n_q, K) after Laplace smoothing: codebook = embed_avg / smoothed counts."""
    total = cluster_size.sum(dim=1, keepdim=True)
    return ((cluster_size + EPSILON) / (total + cluster_size.shape[1] * EPSILON) * total).clamp_min(EPSILON)


def _maps(input_dim: int, codebook_dim: int | None) -> tuple[Any, Any]:
    if codebook_dim is None:
        return nn.Identity(), nn.Identity()
    return weight_norm(Linear(input_dim, codebook_dim)), weight_norm(Linear(codebook_dim, input_dim))


def _share_counts_and_draw(sizes: Sequence[int], shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(vectors of every micro-batch and process, process 0's uniform draw of `shape`), in one collective.

    The draw is float64, since float32 can't name every vector of a large batch.
    """
    counts = torch.zeros(len(sizes), world_size(), dtype=torch.float64, device=device)
    for part, size in enumerate(sizes):
        counts[part, rank()].fill_(size)
    random = torch.rand(shape, dtype=torch.float64, device=device) * (rank() == 0)
    packed = all_reduce_(torch.cat([counts.flatten(), random.flatten()]))
    return packed[: counts.numel()].view(counts.shape).long(), packed[counts.numel() :].view(shape)


def _forget_ready(module: nn.Module, _: object) -> None:
    module._ready = False  # type: ignore[assignment]
