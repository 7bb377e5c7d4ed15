"""Residual vector quantizer whose codebooks follow their data by moving averages (spec section 5).

Everything here is float32 whatever the rest of the model runs in. Training differs from the published code
where that is wrong (spec section 12, pitfalls 2 to 5 and 17): only valid frames count, one process is a valid
world size, and codebook, sum and count always move together.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from xycodec.distributed import all_reduce_, broadcast_, rank_offsets
from xycodec.nn.linear import Linear, product

EPSILON = 1e-5  # Laplace smoothing of the counts


@dataclass(frozen=True)
class QuantizerOutput:
    """What one pass of the quantizer gives."""

    quantized: Tensor
    """(B, T, dim) float32; padded frames hold the bias of the output map."""
    codes: Tensor
    """(B, n_q, T) int64; 0 on padded frames, where a code has no meaning."""
    commitment_loss: Tensor
    """Scalar: mean over valid frames and channels, summed over layers."""
    counts: Tensor
    """(n_q, codebook_size) float32: how often each code was used in the batch of this process."""


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

    Buffers of all layers are stacked: `codebook` and `embed_avg` (n_q, K, D), `cluster_size` (n_q, K) and
    `inited` (n_q,). In training mode with gradients enabled, each forward pass moves them; in eval mode they
    are frozen. `commit_every_layer` gives each layer's commitment loss a gradient to the encoder; the published
    code, by subtracting an undetached straight-through value, gives it to the first layer's only.
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
        codebook_dim: int,
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
        self.input_proj = weight_norm(Linear(input_dim, codebook_dim))
        self.output_proj = weight_norm(Linear(codebook_dim, input_dim))
        self.register_buffer("codebook", torch.zeros(n_q, codebook_size, codebook_dim))
        self.register_buffer("embed_avg", torch.zeros(n_q, codebook_size, codebook_dim))
        self.register_buffer("cluster_size", torch.zeros(n_q, codebook_size))
        self.register_buffer("inited", torch.zeros(n_q, dtype=torch.bool))
        # `inited` as the host knows it, so that a training step need not ask the device.
        self._ready = False
        self.register_load_state_dict_post_hook(_forget_ready)  # type: ignore[no-untyped-call]

    def fold_weight_norm(self) -> None:
        """Replace both weight-normed maps by plain ones, for inference."""
        for proj in (self.input_proj, self.output_proj):
            if parametrize.is_parametrized(proj):
                parametrize.remove_parametrizations(proj, "weight")

    # ---- inference -----------------------------------------------------------------------------

    def encode(self, x: Tensor, n_q: int) -> Tensor:
        """(B, T, input_dim) -> codes (B, n_q, T) int64 of the first `n_q` layers."""
        with torch.autocast(x.device.type, enabled=False):
            residual = self.input_proj(x.float()).flatten(0, 1)
            codes, _ = self._quantize(residual, n_q)
        return codes.view(n_q, *x.shape[:2]).transpose(0, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, k, T) of the first k <= n_q layers -> (B, T, input_dim) float32."""
        with torch.autocast(codes.device.type, enabled=False):
            out: Tensor = self.output_proj(self.sum_codebooks(codes))
        return out

    def sum_codebooks(self, codes: Tensor) -> Tensor:
        """Codes (B, k, T) -> the sum of their codebook rows, (B, T, codebook_dim)."""
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

    def forward(self, x: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        """Quantize (B, T, input_dim); frames where `mask` (B, T) is False count for nothing.

        The quantized values pass their gradient straight to the input.
        """
        with torch.autocast(x.device.type, enabled=False):
            return self._forward(x.float(), mask)

    def _forward(self, x: Tensor, mask: Tensor | None) -> QuantizerOutput:
        b, t, _ = x.shape
        projected = self.input_proj(x).flatten(0, 1)
        valid = self._valid_rows(mask, b * t, x.device)
        rows = projected[valid]
        learning = self.training and torch.is_grad_enabled()
        active = self._active_layers(b, x.device).repeat_interleave(t, dim=1)[:, valid]
        with torch.no_grad():
            if learning and not self._ready:
                self._ready = self._initialise(rows.detach(), active)
            index, residuals = self._quantize(rows.detach(), self.n_q)
            counts = self._counts(index, active)
            chosen = [book[i] for book, i in zip(self.codebook, index, strict=True)]
        # Zero, with the input's gradient: values stay exactly those of the codes.
        straight_through = rows - rows.detach()
        loss = self._commitment(residuals, chosen, straight_through, active)
        total = chosen[0] * active[0, :, None]
        for vectors, used in zip(chosen[1:], active[1:], strict=True):
            total = total + vectors * used[:, None]
        if learning:
            self._follow(residuals, index, active, counts)
        padded = torch.zeros_like(projected).index_put((valid,), total + straight_through)
        codes = torch.zeros(self.n_q, b * t, dtype=torch.int64, device=x.device)
        codes[:, valid] = index
        return QuantizerOutput(
            quantized=self.output_proj(padded.view(b, t, -1)),
            codes=codes.view(self.n_q, b, t).transpose(0, 1),
            commitment_loss=loss,
            counts=counts,
        )

    @staticmethod
    def _valid_rows(mask: Tensor | None, total: int, device: torch.device) -> Tensor:
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

    def _commitment(
        self, residuals: list[Tensor], chosen: list[Tensor], straight_through: Tensor, active: Tensor
    ) -> Tensor:
        """Distance of each layer's input to its code: mean over frames and channels, sum over layers."""
        loss = straight_through.new_zeros(())
        for layer, (residual, code) in enumerate(zip(residuals, chosen, strict=True)):
            reaches_encoder = layer == 0 or self.commit_every_layer
            difference = residual - code + (straight_through if reaches_encoder else 0.0)
            distance = difference.abs() if self.commitment == "l1" else difference.square()
            used = active[layer]
            loss = loss + (distance.mean(dim=-1) * used).sum() / used.sum().clamp_min(1)
        return loss

    def _counts(self, index: Tensor, active: Tensor) -> Tensor:
        counts = torch.zeros(self.n_q, self.codebook_size, device=index.device)
        return counts.scatter_add_(1, index, active.to(counts.dtype))

    def _sums(self, index: Tensor, vectors: Tensor) -> Tensor:
        """Per code, the sum of the vectors (n_q, N, D) assigned to it: (n_q, K, D)."""
        flat = index + torch.arange(self.n_q, device=index.device)[:, None] * self.codebook_size
        sums = torch.zeros_like(self.codebook).flatten(0, 1)
        return sums.index_add_(0, flat.flatten(), vectors.flatten(0, 1)).view_as(self.codebook)

    @torch.no_grad()
    def _follow(self, residuals: list[Tensor], index: Tensor, active: Tensor, counts: Tensor) -> None:
        """Move every codebook towards its assigned vectors, and give dead codes a new start."""
        sums = self._sums(index, torch.stack(residuals) * active[..., None])
        fresh = torch.stack(self._draw(residuals))
        # One collective for all layers and all three statistics.
        packed = all_reduce_(torch.cat([counts[..., None], sums, fresh], dim=-1))
        counts, sums, fresh = torch.split(packed, [1, sums.shape[-1], sums.shape[-1]], dim=-1)
        counts = counts[..., 0]
        # A layer that saw no frame at all stays as it is.
        seen = counts.sum(dim=1, keepdim=True) > 0
        rate = (1 - self.decay) * seen
        self.cluster_size.lerp_(counts, rate)
        self.embed_avg.lerp_(sums, rate[..., None])
        total = self.cluster_size.sum(dim=1, keepdim=True)
        smoothed = (self.cluster_size + EPSILON) / (total + self.codebook_size * EPSILON) * total
        moved = self.embed_avg / smoothed.clamp_min(EPSILON)[..., None]
        self.codebook.copy_(torch.where(seen[..., None], moved, self.codebook))
        self._replace((self.cluster_size < self.dead_code_threshold) & seen, fresh)

    def _replace(self, dead: Tensor, fresh: Tensor) -> None:
        """Where `dead` (n_q, K), start afresh from `fresh` (n_q, K, D) with a count at the threshold."""
        count = torch.full_like(self.cluster_size, max(self.dead_code_threshold, 1.0))
        self.codebook.copy_(torch.where(dead[..., None], fresh, self.codebook))
        self.embed_avg.copy_(torch.where(dead[..., None], fresh * count[..., None], self.embed_avg))
        self.cluster_size.copy_(torch.where(dead, count, self.cluster_size))

    def _initialise(self, rows: Tensor, active: Tensor) -> bool:
        """k-means of the first batch, layer after layer, over the vectors of all processes.

        True once the codebooks hold something: not after a batch without a single valid frame.
        """
        if bool(self.inited.all()):
            return True
        _, total = rank_offsets(torch.tensor(rows.shape[0], device=rows.device))
        if not total:
            return False
        residual = rows
        for layer in range(self.n_q):
            vectors = residual[active[layer]]
            means = all_reduce_(self._draw([vectors])[0])
            for _ in range(self.kmeans_iterations):
                means, _ = self._lloyd(vectors, means)
            _, counts = self._lloyd(vectors, means)
            self.codebook[layer] = means
            # The sum that belongs to the counts (published: the mean itself, which shrinks the code at once).
            self.cluster_size[layer] = counts.clamp_min(1)
            self.embed_avg[layer] = means * counts.clamp_min(1)[:, None]
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

    def _draw(self, batches: list[Tensor]) -> list[Tensor]:
        """`codebook_size` random vectors of all processes' rows, this process's share: sum over ranks to use.

        The rows (N, D) are cut into as many strata as there are codes, and one is drawn from each, so none
        repeats while there are enough. Process 0 draws; every tensor in `batches` has the same N.
        """
        vectors, k, device = batches[0], self.codebook_size, batches[0].device
        before, total = rank_offsets(torch.tensor(vectors.shape[0], device=device))
        random = torch.stack([torch.rand(len(batches), k, device=device) for _ in range(2)])
        broadcast_(random)
        stratum = random[0].argsort(dim=1)
        first, end = (stratum * total + k - 1) // k, ((stratum + 1) * total + k - 1) // k
        # double, since float32 can't name every row of a large batch
        within = (random[1].double() * (end - first)).long()
        index = (first + within).minimum(end - 1).clamp_min(0) - before
        mine = (index >= 0) & (index < vectors.shape[0])
        if not vectors.shape[0]:
            return [vectors.new_zeros(k, vectors.shape[1]) for _ in batches]
        local = index.clamp(0, vectors.shape[0] - 1)
        return [rows[i] * own[:, None] for rows, i, own in zip(batches, local, mine, strict=True)]


def nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest row by squared Euclidean distance, the first of equals: (N, D), (K, D) -> (N,)."""
    # Summed in the published order, so that near-ties round alike.
    distance = x.square().sum(dim=1, keepdim=True) - 2 * product(x, codebook) + codebook.square().sum(dim=1)
    return distance.argmin(dim=1)


def _forget_ready(module: nn.Module, _: object) -> None:
    module._ready = False  # type: ignore[assignment]
