"""Encoders of connectomes: shapes, symmetries, gradients, and plain transcriptions of their equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from medprism.encoders import Encoder
from medprism.encoders.connectome import ConnectomeTransformer, MLPEncoder, Pooling, RegionProjection
from medprism.encoders.graph import GraphEncoder, strongest

R = 9

CASES: dict[str, tuple[type[Encoder], dict[str, Any]]] = {
    "region": (RegionProjection, {}),
    "region-attention": (RegionProjection, {"pooling": "attention", "norm": True}),
    "region-layers": (RegionProjection, {"layers": 2}),
    "region-concat": (RegionProjection, {"pooling": "concat"}),
    "transformer": (ConnectomeTransformer, {"dim": 16, "feedforward": 32}),
    "transformer-nameless": (ConnectomeTransformer, {"dim": 16, "feedforward": 32, "identity": False}),
    "transformer-concat": (
        ConnectomeTransformer,
        {"dim": 16, "feedforward": 32, "pooling": "concat", "input_dropout": 0.5},
    ),
    "graph-gatv2": (GraphEncoder, {"dim": 16, "density": 0.3}),
    "graph-sage": (GraphEncoder, {"dim": 16, "conv": "sage", "density": 0.3}),
    "graph-gcn": (GraphEncoder, {"dim": 16, "conv": "gcn", "neighbours": 3}),
    "graph-concat": (
        GraphEncoder,
        {"dim": 16, "conv": "sage", "density": 0.3, "pooling": "concat", "input_dropout": 0.5, "standardize": True},
    ),
    "mlp": (MLPEncoder, {"dim": 16}),
    "mlp-rows": (MLPEncoder, {"dim": 16, "flatten": False, "layers": 3}),
}


def build(case: str, regions: int = R, seed: int = 0) -> Encoder:
    cls, options = CASES[case]
    torch.manual_seed(seed)
    return cls(regions, **options)


def connectomes(size: int = 4, regions: int = R, seed: int = 1) -> Tensor:
    """Correlation matrices of random time courses."""
    courses = torch.randn(size, regions, 20, generator=torch.Generator().manual_seed(seed))
    return torch.stack([torch.corrcoef(course) for course in courses])


every_case = pytest.mark.parametrize("case", CASES)


@every_case
@pytest.mark.parametrize("regions", [R, 190])
def test_shapes(case: str, regions: int) -> None:
    encoder = build(case, regions)
    tokens, pooled = encoder(connectomes(3, regions))
    assert tokens.shape == (3, regions, encoder.dim)
    assert pooled.shape == (3, encoder.dim)
    assert tokens.isfinite().all() and pooled.isfinite().all()
    assert encoder.input_field == "connectome"


@every_case
def test_a_sample_does_not_depend_on_the_others(case: str) -> None:
    encoder, x = build(case).eval(), connectomes()
    together = encoder(x)
    for index in range(len(x)):
        alone = encoder(x[index : index + 1])
        torch.testing.assert_close(alone.tokens[0], together.tokens[index])
        torch.testing.assert_close(alone.pooled[0], together.pooled[index])


@every_case
def test_every_parameter_and_the_input_get_a_gradient(case: str) -> None:
    encoder, x = build(case).eval(), connectomes().requires_grad_()
    out = encoder(x)
    weights = torch.Generator().manual_seed(2)
    loss = (out.tokens * torch.randn(out.tokens.shape, generator=weights)).sum()
    loss = loss + (out.pooled * torch.randn(out.pooled.shape, generator=weights)).sum()
    loss.backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    off_diagonal = x.grad[:, ~torch.eye(R, dtype=torch.bool)]
    assert (off_diagonal != 0).float().mean() > 0.45  # at least one triangle of each matrix


@every_case
def test_pooled_alone_trains_every_parameter(case: str) -> None:
    """Plain DDP stops at a parameter without gradient, and a classifier reads only `pooled`."""
    encoder = build(case)
    encoder(connectomes()).pooled.sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


@every_case
def test_seed_determines_weights_and_dropout(case: str) -> None:
    def run(seed: int) -> Tensor:
        encoder = build(case, seed=seed)
        out: Tensor = encoder(connectomes()).tokens
        return out

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


@every_case
def test_autocast(case: str) -> None:
    encoder, x = build(case), connectomes()
    exact = encoder.eval()(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = encoder(x)
        encoder.train()(x).pooled.float().sum().backward()
    torch.testing.assert_close(rough.tokens.float(), exact.tokens, atol=0.1, rtol=0.1)
    torch.testing.assert_close(rough.pooled.float(), exact.pooled, atol=0.1, rtol=0.1)


def rename_regions(encoder: Encoder, order: Tensor) -> None:
    """Move the weights that belong to regions along with the regions."""
    with torch.no_grad():
        if isinstance(encoder, RegionProjection):
            encoder.weight.copy_(encoder.weight[order][:, order])
        elif isinstance(encoder, ConnectomeTransformer):
            encoder.projection.weight.copy_(encoder.projection.weight[:, order])
            if encoder.identity is not None:
                encoder.identity.copy_(encoder.identity[order])
        elif isinstance(encoder, GraphEncoder):
            for weight in encoder.convs[0].parameters():
                if weight.shape[-1] == R:
                    weight.copy_(weight[:, order])
        elif isinstance(encoder, MLPEncoder) and not encoder.flatten:
            encoder.first.weight.copy_(encoder.first.weight[:, order])
        elif isinstance(encoder, MLPEncoder):
            row, column = torch.triu_indices(R, R, 1)
            number = {(int(r), int(c)): e for e, (r, c) in enumerate(zip(row, column, strict=True))}
            moved = [number[tuple(sorted((int(order[r]), int(order[c]))))] for r, c in zip(row, column, strict=True)]
            encoder.first.weight.copy_(encoder.first.weight[:, moved])
        if (pool := getattr(encoder, "pool", None)) is not None and pool.concat is not None:
            last = pool.concat[-1].weight
            last.copy_(last.view(len(last), R, -1)[:, order].flatten(1))


@every_case
def test_renaming_regions_renames_tokens_and_keeps_pooled(case: str) -> None:
    encoder, x = build(case).eval(), connectomes()
    before = encoder(x)
    order = torch.randperm(R, generator=torch.Generator().manual_seed(3))
    rename_regions(encoder, order)
    after = encoder(x[:, order][:, :, order])
    torch.testing.assert_close(after.tokens, before.tokens[:, order])
    torch.testing.assert_close(after.pooled, before.pooled)


@pytest.mark.parametrize("case", ["transformer-nameless", "mlp-rows"])
def test_without_region_identity_the_order_of_rows_is_free(case: str) -> None:
    encoder, x = build(case).eval(), connectomes()
    order = torch.randperm(R, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(encoder(x[:, order]).tokens, encoder(x).tokens[:, order])


def test_identity_tells_equal_rows_apart() -> None:
    same_rows = connectomes(1)[:, :1].expand(1, R, R)
    nameless = build("transformer-nameless").eval()(same_rows).tokens
    named = build("transformer").eval()(same_rows).tokens
    assert (nameless[:, 0] - nameless[:, 1]).abs().max() < 1e-5
    assert (named[:, 0] - named[:, 1]).abs().max() > 1e-3


def test_region_projection_is_its_equation() -> None:
    encoder, x = build("region").eval(), connectomes(2)
    tokens, pooled = encoder(x)
    for b in range(2):
        for r in range(R):
            torch.testing.assert_close(tokens[b, r], encoder.weight[r].T @ x[b, r])
    torch.testing.assert_close(pooled, sum(tokens[:, r] for r in range(R)) / R)


def test_region_projection_with_mean_and_linear_head_is_linear_in_the_edges() -> None:
    encoder, (x, y) = build("region").eval(), connectomes(2)[:, None]
    mixed = encoder(0.3 * x + 0.7 * y).pooled
    torch.testing.assert_close(mixed, 0.3 * encoder(x).pooled + 0.7 * encoder(y).pooled)


def test_input_dropout_acts_in_training_only() -> None:
    encoder, x = build("region"), connectomes()
    assert not torch.equal(encoder(x).tokens, encoder(x).tokens)
    assert torch.equal(encoder.eval()(x).tokens, encoder(x).tokens)


def test_attention_pooling_starts_as_the_mean_and_follows_its_scores() -> None:
    encoder, x = build("region-attention").eval(), connectomes()
    tokens, pooled = encoder(x)
    torch.testing.assert_close(pooled, tokens.mean(1))
    score = encoder.pool.score
    torch.nn.init.normal_(score.weight)
    weights = [torch.softmax(torch.stack([score.weight[0] @ v for v in sample]), 0) for sample in tokens]
    expected = torch.stack([w @ sample for w, sample in zip(weights, tokens, strict=True)])
    torch.testing.assert_close(encoder(x).pooled, expected)


def test_concat_pooling_reduces_each_token_and_reads_them_side_by_side() -> None:
    torch.manual_seed(0)
    pool, tokens = Pooling(6, "concat", tokens=R).eval(), torch.randn(2, R, 6)
    assert pool.concat is not None
    reduce, last = pool.concat[0], pool.concat[-1]
    for sample, pooled in zip(tokens, pool(tokens), strict=True):
        joined = torch.cat([reduce.weight @ sample[r] + reduce.bias for r in range(R)])
        torch.testing.assert_close(pooled, last.weight @ joined + last.bias)


def test_concat_pooling_drops_reduced_tokens_in_training_only() -> None:
    pool, tokens = Pooling(6, "concat", tokens=R, dropout=0.9), torch.randn(2, R, 6)
    assert not torch.equal(pool(tokens), pool(tokens))
    assert torch.equal(pool.eval()(tokens), pool(tokens))


def test_graph_standardises_features_over_training_and_chooses_edges_as_they_are() -> None:
    torch.manual_seed(0)
    encoder, x = GraphEncoder(R, dim=4, conv="sage", density=0.3, standardize=True), connectomes(6)
    plain = GraphEncoder(R, dim=4, conv="sage", density=0.3)
    plain.load_state_dict(encoder.state_dict(), strict=False)
    encoder(x[:3]), encoder(x[3:])  # two batches of training
    spread = torch.stack([x[:3].var(0), x[3:].var(0)]).mean(0)
    scaled = (x - x.mean(0)) / (spread + 1e-5).sqrt()
    encoder, plain = encoder.eval(), plain.eval()
    plain.edges = lambda _: encoder.edges(x)  # type: ignore[method-assign]
    torch.testing.assert_close(encoder(x).tokens, plain(scaled).tokens, atol=1e-4, rtol=1e-4)


def test_transformer_layers_start_from_different_weights() -> None:
    first, second = build("transformer").layers[:2]
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


def test_flat_mlp_reads_the_upper_triangle_and_tokens_are_its_first_layer() -> None:
    encoder, x = build("mlp").eval(), connectomes()
    tokens, pooled = encoder(x)
    row, column = torch.triu_indices(R, R, 1)
    first = functional.linear(x[:, row, column], encoder.first.weight, encoder.first.bias)
    torch.testing.assert_close(tokens.mean(1) + encoder.first.bias, first)
    torch.testing.assert_close(pooled, functional.linear(functional.gelu(first), *encoder.rest[0][2].parameters()))
    for r in range(R):  # half of each edge that ends in r
        share = torch.zeros(len(x), encoder.dim)
        for edge, ends in enumerate(zip(row.tolist(), column.tolist(), strict=True)):
            if r in ends:
                share += x[:, ends[0], ends[1], None] * encoder.first.weight[:, edge] * R / 2
        torch.testing.assert_close(tokens[:, r], share)


def gcn(x: Tensor, keep: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Dense transcription of one signed GCN layer on one graph."""
    adjacency = torch.eye(R)
    for r in range(R):
        for s in range(R):
            if keep[r, s]:
                adjacency[r, s] = x[r, s]
    degree = adjacency.abs().sum(1)
    out = torch.zeros(R, len(weight))
    for r in range(R):
        for s in range(R):
            out[r] += adjacency[r, s] / (degree[r] * degree[s]).sqrt() * (weight @ x[s])
    return out + bias


def sage(x: Tensor, keep: Tensor, neighbours: Tensor, bias: Tensor, own: Tensor) -> Tensor:
    """Dense transcription of one weighted mean-aggregation layer on one graph."""
    out = torch.zeros(R, len(own))
    for r in range(R):
        messages = [x[r, s] * x[s] for s in range(R) if keep[r, s]]
        mean = torch.stack(messages).mean(0) if messages else torch.zeros(R)
        out[r] = neighbours @ mean + bias + own @ x[r]
    return out


def gatv2(x: Tensor, keep: Tensor, conv: Any) -> Tensor:
    """Dense transcription of one GATv2 layer on one graph; the loop's edge feature is the mean of the others'."""
    heads, width = conv.heads, conv.out_channels
    source, target = conv.lin_l(x).view(R, heads, width), conv.lin_r(x).view(R, heads, width)
    out = torch.zeros(R, heads, width)
    for r in range(R):
        others = [s for s in range(R) if keep[r, s]]
        loop = x[r, others].mean() if others else torch.tensor(0.0)
        pairs = [(s, x[r, s]) for s in others] + [(r, loop)]
        for h in range(heads):
            edge = [conv.lin_edge.weight.view(heads, width)[h] * w for _, w in pairs]
            hidden = [target[r, h] + source[s, h] + e for (s, _), e in zip(pairs, edge, strict=True)]
            alpha = torch.stack([conv.att[0, h] @ functional.leaky_relu(v, 0.2) for v in hidden]).softmax(0)
            out[r, h] = sum(a * source[s, h] for a, (s, _) in zip(alpha, pairs, strict=True))
    return out.flatten(1) + conv.bias


@pytest.mark.parametrize("kind", ["gcn", "sage", "gatv2"])
@pytest.mark.parametrize("options", [{"density": 0.3}, {"neighbours": 2}, {"density": 1.0}, {"density": 0.03}])
def test_graph_convolution_is_its_dense_transcription(kind: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    encoder = GraphEncoder(R, dim=8, conv=kind, layers=1, heads=2, **options).eval()  # type: ignore[arg-type]
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter)
    conv, norm, x = encoder.convs[0], encoder.norms[0], connectomes(3)
    keep = strongest(x, options.get("density", 0), options.get("neighbours"))
    dense: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "gcn": lambda a, k: gcn(a, k, conv.lin.weight, conv.bias),
        "sage": lambda a, k: sage(a, k, conv.lin_rel.weight, conv.lin_rel.bias, conv.lin_root.weight),
        "gatv2": lambda a, k: gatv2(a, k, conv),
    }
    expected = torch.stack([norm(dense[kind](a, k)) for a, k in zip(x, keep, strict=True)])
    torch.testing.assert_close(encoder(x).tokens, expected, atol=1e-5, rtol=1e-4)


def test_strongest_keeps_the_share_and_the_signs() -> None:
    x = connectomes(3)
    keep = strongest(x, density=0.25)
    assert keep.sum((1, 2)).tolist() == [18, 18, 18]  # a quarter of 9 * 8 entries
    assert not keep.diagonal(dim1=1, dim2=2).any()
    assert torch.equal(keep, keep.transpose(1, 2))
    off_diagonal = ~torch.eye(R, dtype=torch.bool)
    for strength, kept in zip(x.abs(), keep, strict=True):
        assert strength[kept].min() > strength[~kept & off_diagonal].max()
    assert (x[keep] < 0).any()  # strong anticorrelation counts


def test_strongest_neighbours_of_each_region() -> None:
    keep = strongest(connectomes(3), density=0.0, neighbours=3)
    assert (keep.sum(2) == 3).all()


def test_strongest_keeps_ties_so_that_the_order_of_regions_does_not_matter() -> None:
    x = torch.tensor([[[1.0, 0.5, 0.5], [0.5, 1.0, 0.1], [0.5, 0.1, 1.0]]])
    assert strongest(x, density=1 / 3).sum() == 4


def test_edges_point_from_the_column_to_the_row() -> None:
    x = torch.zeros(2, R, R)
    x[1, 4, 2] = -0.7
    edges, weights = GraphEncoder(R, dim=4, conv="sage", density=1 / (R * (R - 1))).edges(x[1:])
    assert edges.tolist() == [[2], [4]]
    assert weights.tolist() == pytest.approx([-0.7])


def test_graph_of_zeros_is_finite() -> None:
    for conv in ("gatv2", "sage", "gcn"):
        encoder = GraphEncoder(R, dim=4, conv=conv)  # type: ignore[arg-type]
        assert encoder(torch.zeros(2, R, R)).tokens.isfinite().all()


@every_case
@pytest.mark.parametrize("shape", [(2, R, R + 1), (2, R + 1, R + 1), (R, R)])
def test_wrong_shape_is_refused(case: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"expected connectomes of shape \(B, {R}, {R}\)"):
        build(case)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RegionProjection(R, pooling="max"), "choose 'mean', 'attention' or 'concat'"),
        (lambda: Pooling(4, "concat"), "say how many"),
        (lambda: RegionProjection(R, dim=10, layers=1), "multiple of 4"),
        (lambda: ConnectomeTransformer(R, dim=10), "multiple of 4"),
        (lambda: GraphEncoder(R, dim=10), "multiple of 4"),
        (lambda: GraphEncoder(R, conv="gin"), "choose 'gatv2', 'sage' or 'gcn'"),
        (lambda: GraphEncoder(R, density=0.0), r"\(0, 1\]"),
        (lambda: GraphEncoder(R, neighbours=R), f"from 1 to {R - 1}"),
        (lambda: GraphEncoder(R, layers=0), "at least 1"),
        (lambda: MLPEncoder(R, layers=0), "at least 1"),
    ],
)
def test_wrong_options_are_refused(make: Callable[[], Encoder], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
