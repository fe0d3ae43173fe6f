"""Vision transformers equal the public MoCo v3's on the parity cases: tokens, features and gradients."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from support import parity_files, parity_weights, parity_weights_v3

from moco_tf.errors import UserError
from moco_tf.formats.torchvision import get_weights, set_weights, to_torch_layout
from moco_tf.networks import cost as costs
from moco_tf.networks.encoder import Encoder

OUTPUTS, GRADIENTS = {"float64": 1e-12}, {"float64": 1e-10}  # else the parity cases' README's: 1e-5 and 2e-4
CASES = [(name, mode) for name in ("patch", "conv") for mode in ("float64", "graph")] + [("patch", "compiled")]
CASES += [pytest.param("conv", "compiled", marks=pytest.mark.system)]


def vit(arch="vit_small", **values):
    return Encoder(arch, **{"width": 48, "depth": 2, "heads": 3, "patch": 4, "head": "none", **values})


def load(name, mode="float64"):
    case = np.load(parity_files.path(f"float64/vit_forward_{name}.npz"))
    own = {key: int(case[key]) for key in ("depth", "heads", "patch", "mlp_ratio")}
    dtype = "float64" if mode == "float64" else "float32"
    dim, projector = int(case["dim"]), {}
    if "head_dim" in case:
        projector = {"head": "mlp_bn3", "hidden_dim": int(case["head_hidden"]), "feature_dim": int(case["head_dim"])}
    encoder = vit(width=dim, stem=str(case["stem"]), dtype=dtype, **own, **projector)
    if mode == "compiled":
        encoder.prepare_for_xla()
    shapes = parity_weights_v3.vit_shapes(own["patch"], dim, own["depth"], stem=str(case["stem"]))
    if projector:
        widths = dim, projector["hidden_dim"], projector["feature_dim"]
        shapes += parity_weights_v3.mlp_shapes("head", int(case["head_layers"]), *widths)
    set_weights(encoder, parity_weights_v3.encoder_state(int(case["weights_seed"]), shapes))
    images = parity_weights.images(int(case["images_seed"]), int(case["n"]), int(case["img_size"]))
    if mode == "float64" and name != "small":  # PyTorch's float32 sines differ from the nearest number in the last bit
        encoder.backbone.positions = lambda rows, columns: tf.constant(case["pos_embed"][0])
    return case, encoder, tf.constant(images.transpose(0, 2, 3, 1), dtype)


def assert_near(got, expected, tolerance):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def check_gradient(case, key, value, tolerance):
    """Norm, mean and projection of a gradient, of its norm; of one that is zero, absolutely."""
    mean, norm, projection = case[key][:3]
    scale = tolerance * norm if norm > 1e-3 else tolerance
    np.testing.assert_allclose(np.linalg.norm(value), norm, rtol=0, atol=scale, err_msg=key)
    np.testing.assert_allclose(value.mean() * np.sqrt(value.size), mean * np.sqrt(value.size), rtol=0, atol=scale)
    probe = parity_weights_v3.probe(key.partition("/")[2], value.shape)
    np.testing.assert_allclose(np.sum(value * probe), projection, rtol=0, atol=10 * scale, err_msg=key)


def check_gradients(case, group, names, gradients, tolerance):
    for name, gradient in zip(names, gradients, strict=True):
        value = to_torch_layout(gradient.numpy())
        if name.endswith("qkv.bias"):
            for third, part in zip("qkv", np.split(value, 3), strict=True):
                check_gradient(case, f"{group}/{name}[{third}]", part, tolerance)
        else:
            check_gradient(case, f"{group}/{name}", value, tolerance)


@pytest.mark.parametrize("name, mode", CASES)
def test_equals_the_public_implementation(name, mode):
    case, encoder, images = load(name, mode)
    tolerance, steps = OUTPUTS.get(mode, 1e-5), encoder.backbone
    assert_near(steps.embed(images[:2]), case["eval_embedded"], tolerance)
    assert_near(steps.tokens(images[:2]), case["eval_tokens"], tolerance)
    frozen = {n: v for n, v in encoder.named_variables().items() if n in steps.frozen}
    assert sorted([*frozen, "pos_embed"]) == sorted(case["frozen"])
    learnt, trunk = encoder.named_parameters(), {n: v for n, v in encoder.named_parameters().items() if "head" not in n}

    def forward(images, training):
        """Features and projections; the loss of the case, of the projections in training, and its gradients."""
        seed, watched = int(case["cotangent_seed"]) + training, learnt if training else {**trunk, **frozen}
        with tf.GradientTape() as tape:
            features = encoder.features(images, training=training)
            projected = encoder.project(features, training=training)
            compared = projected if training else features
            loss = tf.reduce_sum(compared * parity_weights_v3.cotangent(seed, compared.shape))
        gradients = tape.gradient(loss, [v.value for v in watched.values()])
        return features, projected, loss, dict(zip(watched, gradients, strict=True))

    run = forward if mode == "float64" else tf.function(forward, jit_compile=mode == "compiled")
    bound = GRADIENTS.get(mode, 2e-4)
    features, projected, loss, gradients = run(images, False)
    assert_near(features, case["eval_features"], tolerance)
    assert_near(projected, case["eval_projected"], tolerance)
    np.testing.assert_allclose(loss, case["loss_features"], rtol=10 * tolerance)
    check_gradients(case, "grad_features", trunk, [gradients[name] for name in trunk], bound)
    check_gradients(case, "grad_unfrozen", frozen, [gradients[name] for name in frozen], bound)
    features, projected, loss, gradients = run(images, True)
    assert_near(features, case["train_features"], 5 * tolerance)
    assert_near(projected, case["train_projected"], 5 * tolerance)
    np.testing.assert_allclose(loss, case["loss_projected"], rtol=50 * tolerance)
    check_gradients(case, "grad_projected", learnt, gradients.values(), bound)
    for name, value in get_weights(encoder).items():
        if "running" in name:
            mean, norm, *first = case[f"stats_after_train/{name}"]
            scale = 5 * tolerance * norm / np.sqrt(value.size)
            np.testing.assert_allclose([value.mean(), *value.ravel()[:8]], [mean, *first], rtol=0, atol=4 * scale)
            np.testing.assert_allclose(np.linalg.norm(value), norm, rtol=5 * tolerance)


def test_vit_small_equals_the_public_implementation():
    case, encoder, images = load("small", "graph")
    rows = encoder.backbone.positions(14, 14).numpy()[case["pos_embed_rows"]]
    np.testing.assert_allclose(rows, case["pos_embed"], rtol=0, atol=6e-8)
    assert_near(tf.function(encoder.features)(images), case["eval_features"], 1e-5)


def test_positions_of_a_grid_that_is_no_square():
    encoder, row, column = vit(dtype="float64"), 2, 1
    waves = [[np.sin(at / 10000 ** (j / 12)) for j in range(12)] for at in (row, column)]
    others = [[np.cos(at / 10000 ** (j / 12)) for j in range(12)] for at in (row, column)]
    expected = np.concatenate([waves[0], others[0], waves[1], others[1]])
    np.testing.assert_allclose(encoder.backbone.positions(3, 5)[1 + row * 5 + column], expected, atol=1e-6)
    images = tf.constant(np.random.default_rng(0).normal(size=(2, 12, 20, 3)))
    dynamic = tf.function(encoder.features, input_signature=[tf.TensorSpec([None, None, None, 3], tf.float64)])
    np.testing.assert_allclose(dynamic(images), encoder.features(images), atol=1e-12)


def count(**values):
    encoder = Encoder(head="none", **values)
    total, learnt = encoder.named_variables(), encoder.named_parameters()
    return [sum(int(np.prod(v.shape)) for v in found.values()) for found in (total, learnt)]


@pytest.mark.parametrize(
    "arch, dim, stem, published",
    [
        ("vit_small", 384, "patch", 21_665_664),
        ("vit_base", 768, "patch", 85_798_656),
        ("vit_small", 384, "conv", 20_617_392),
        ("vit_base", 768, "conv", 82_199_904),
    ],
)
def test_parameters_are_the_papers(arch, dim, stem, published):
    """Of one and two blocks, and so of any number. The position embedding is a parameter there, and computed here."""
    one, two = (count(arch=arch, stem=stem, depth=depth) for depth in (1, 2))
    blocks = {"patch": 12, "conv": 11}[stem]
    total, learnt = (a + (blocks - 1) * (b - a) for a, b in zip(one, two, strict=True))
    frozen = 16 * 16 * 3 * dim + dim if stem == "patch" else 0
    statistics = 0 if stem == "patch" else 2 * (1 + 2 + 4 + 8) * dim // 8
    assert [total - statistics, learnt] == [published - 197 * dim, published - 197 * dim - frozen]


def test_multiply_adds_of_vit_small_at_224_px():
    cost = costs.cost(Encoder("vit_small", head="none", depth=2).features, 224)
    block = 197 * 12 * 384**2 + 2 * 197**2 * 384  # products with matrices, and of tokens
    assert cost.multiply_adds == 196 * (3 * 16**2) * 384 + 2 * block


def test_initial_values():
    weights = get_weights(vit(width=96, heads=4))

    def uniform(name, limit):
        values = weights[name]
        np.testing.assert_allclose(
            [values.min(), values.max(), values.std()], [-limit, limit, limit / 3**0.5], rtol=0.1
        )

    uniform("patch_embed.proj.weight", np.sqrt(6 / (3 * 16 + 96)))
    uniform("blocks.0.attn.qkv.weight", np.sqrt(6 / (96 + 96)))
    uniform("blocks.0.attn.proj.weight", np.sqrt(6 / (96 + 96)))
    uniform("blocks.1.mlp.fc1.weight", np.sqrt(6 / (96 + 4 * 96)))
    assert 5e-7 < weights["cls_token"].std() < 2e-6
    assert not any(np.any(value) for name, value in weights.items() if name.endswith("bias"))
    assert all(np.all(value == 1) for name, value in weights.items() if "norm" in name and name.endswith("weight"))
    weights = get_weights(vit(patch=16, stem="conv", width=96))
    uniform("patch_embed.proj.3.weight", np.sqrt(1 / (9 * 12)))
    uniform("patch_embed.proj.12.weight", np.sqrt(1 / 96))
    one, other = (weights[f"patch_embed.proj.{i}.weight"].ravel()[:300] for i in (0, 3))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.3  # each layer draws its own
    assert np.abs(weights["patch_embed.proj.12.bias"]).max() > 0.5 * np.sqrt(1 / 96)


def test_class_tokens_attention():
    case, encoder, images = load("patch")
    weights = encoder.backbone.attention(images).numpy()
    assert weights.shape == (8, 3, 17)
    np.testing.assert_allclose(weights.sum(2), 1, atol=1e-12)


@functools.cache
def gradients(dtype="float64", stem="conv", splits=1, **save):
    tf.keras.utils.set_random_seed(0)
    patch = 16 if stem == "conv" else 4
    own = {"stem": stem, "patch": patch, "depth": 1, "bn_splits": splits}
    encoder = vit(**own, head="linear", feature_dim=8, dtype=dtype)
    encoder.save_memory(**save)
    images = tf.constant(np.random.default_rng(0).normal(size=(8, 32, 32, 3)), encoder.variable_dtype)

    @tf.function
    def run():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.sin(encoder(images, training=True)))
        return tape.gradient(loss, [v.value for v in encoder.parameters()])

    return dict(zip(encoder.named_parameters(), run(), strict=True))


@pytest.mark.parametrize("how", [{"recompute": True}, {"micro_batches": 2}])
def test_less_memory_gives_the_same_gradients(how):
    expected = gradients(splits=how.get("micro_batches", 1))
    for name, value in gradients(**how).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-10, err_msg=name)


def test_bfloat16_is_near_float32():
    expected = gradients("float32", "patch")
    for name, value in gradients("mixed_bfloat16", "patch").items():
        if not name.endswith("qkv.bias"):  # its keys' third is zero
            error = np.linalg.norm(value - expected[name]) / np.linalg.norm(expected[name])
            assert value.dtype == tf.float32 and error < 0.15, name


def test_what_does_not_go_together_is_refused():
    with pytest.raises(UserError, match="--patch=4 came with --stem=conv, expected 16"):
        vit(stem="conv")
    with pytest.raises(UserError, match="a width of 48 came with --heads=5, expected a multiple of that and of 4"):
        vit(heads=5)
    with pytest.raises(
        UserError, match="^images of 18x16 pixels came, expected multiples of --patch=4; give another --image_size$"
    ):
        vit()(tf.zeros([1, 18, 16, 3]))
