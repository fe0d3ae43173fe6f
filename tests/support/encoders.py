"""Small encoders for tests, and what they give."""

import numpy as np

from moco_tf.formats.base import Loaded
from moco_tf.networks.encoder import Encoder

SIZE, MEAN, STD = 24, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
CASES = {
    "mlp": {"arch": "resnet10", "stem": "cifar", "head": "mlp"},
    "mlp_bn": {"arch": "resnet10", "stem": "imagenet", "head": "mlp_bn", "hidden_dim": 5, "bn_splits": 2},
    "mlp_bn3": {"arch": "resnet10", "stem": "cifar", "head": "mlp_bn3", "hidden_dim": 5},
    "linear": {"arch": "resnet50", "stem": "imagenet", "head": "linear"},
    "none": {"arch": "resnet10", "stem": "imagenet", "head": "none"},
}


def subject(width=4, **values):
    """A loaded encoder, the same each time, whose running statistics and scales are not the initial ones."""
    encoder, rng = Encoder(**{"width": width, "feature_dim": 6, **values}), np.random.default_rng(1)
    for name, variable in encoder.named_variables().items():
        spread = rng.uniform(0.5, 1.5, variable.shape)
        if len(variable.shape) > 1:
            variable.assign(rng.normal(size=variable.shape) * np.sqrt(2 / np.prod(variable.shape[:-1])))
        else:
            variable.assign(spread if name.endswith((".weight", "running_var")) else 0.1 * (spread - 1))
    return Loaded(encoder, "encoder", "test", 7, SIZE, MEAN, STD)


def random_images(count, size=SIZE, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8))


def expected(loaded, images):
    """Outputs of the encoder itself, normalised in NumPy."""
    x = ((np.stack(images) / 255.0 - loaded.mean) / loaded.std).astype(np.float32)
    pooled = loaded.encoder.features(x).numpy()
    head = loaded.encoder(x).numpy()
    length = np.linalg.norm(head, axis=1, keepdims=True)
    return {"features": pooled, "head": head, "projection": head / length}


def assert_same(found, wanted, tolerance=1e-5):
    assert found.shape == wanted.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())
