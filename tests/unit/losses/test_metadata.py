import torch
from sklearn.linear_model import LinearRegression

from medprism.losses.metadata import metadata_effect


def made(n=200):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (n, 1), generator=generator).float()
    agree = torch.rand(n, 1, generator=generator) < 0.8
    metadata = torch.where(agree, labels, 1 - labels) - 0.5
    features = 2 * labels + 3 * metadata + 0.1 * torch.randn(n, 4, generator=generator)
    return features, metadata, labels


def test_equals_least_squares():
    features, metadata, labels = made()
    expected = LinearRegression().fit(torch.cat([metadata, labels], 1).numpy(), features.numpy()).coef_[:, :1].T
    assert torch.allclose(metadata_effect(features, metadata, labels), torch.from_numpy(expected).float(), atol=1e-3)


def test_what_the_label_explains_stays():
    features, metadata, labels = made()
    rest = features - metadata @ metadata_effect(features, metadata, labels)
    gap = [(rest[(labels == y)[:, 0]].mean(0)).mean() for y in (0, 1)]
    assert abs((gap[1] - gap[0]).item() - 2) < 0.1


def test_gradient_reaches_the_features_and_a_constant_column_is_harmless():
    features, metadata, labels = made()
    features.requires_grad_()
    effect = metadata_effect(features, torch.cat([metadata, torch.zeros_like(metadata)], 1), labels)
    effect.square().sum().backward()
    assert features.grad.isfinite().all() and features.grad.abs().sum() > 0
    assert torch.allclose(effect[1], torch.zeros(4), atol=1e-5)
