"""--load finds the encoder in run folders, checkpoints and other programs' files, and its outputs are theirs."""

import lzma

import numpy as np
import pytest
from support import parity_files, parity_weights

from moco_tf.errors import UserError
from moco_tf.formats import pth
from moco_tf.formats.load import load
from moco_tf.formats.torchvision import get_weights
from moco_tf.networks.encoder import Encoder
from moco_tf.training import checkpoint


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    packed = parity_files.path("official_resnet18_v2.pth.tar.xz")
    path = tmp_path_factory.mktemp("official") / "official.pth.tar"
    path.write_bytes(lzma.decompress(packed.read_bytes()))
    return path


def images(seed, n, size):
    return np.ascontiguousarray(parity_weights.images(seed, n, size).transpose(0, 2, 3, 1))


def test_official_checkpoint_gives_the_official_outputs(official):
    expected = np.load(parity_files.path("official_resnet18_v2_expected.npz"))
    loaded = load(str(official))
    x = images(int(expected["images_seed"]), int(expected["n"]), int(expected["size"]))
    for got, name in ((loaded.encoder.features(x), "pooled"), (loaded.encoder(x), "output")):
        np.testing.assert_allclose(got, expected[name], atol=1e-4 * np.abs(expected[name]).max())
    assert loaded.mean == (0.485, 0.456, 0.406)


def test_untrained_keeps_the_architecture_and_not_the_weights(official):
    trained, untrained = load(str(official)).encoder, load(str(official), untrained=True).encoder
    assert {k: v.shape for k, v in get_weights(trained).items()} == {
        k: v.shape for k, v in get_weights(untrained).items()
    }
    assert np.abs(get_weights(trained)["conv1.weight"] - get_weights(untrained)["conv1.weight"]).max() > 0.01


@pytest.mark.parametrize("head", ["linear", "mlp", "mlp_bn"])
def test_written_torch_file_is_read_back(tmp_path, head):
    encoder = Encoder(
        "resnet10", stem="cifar", width=8, head=head, feature_dim=6, hidden_dim=10 if "mlp" in head else 0
    )
    pth.write_tensors(tmp_path / "encoder.pth", get_weights(encoder))
    again = load(str(tmp_path / "encoder.pth")).encoder
    x = images(0, 2, 16)
    np.testing.assert_array_equal(encoder(x), again(x))


def test_run_folder_and_checkpoint(tmp_path):
    encoder = Encoder("resnet10", stem="cifar", width=8, head="mlp", feature_dim=6)
    state = {"query_encoder": {name: v.value for name, v in encoder.named_variables().items()}}
    about = {"encoder": dict(encoder.config), "image_size": 20, "mean": [0.1] * 3, "std": [0.2] * 3}
    path = checkpoint.save(tmp_path / "checkpoints", 7, state, about, keep=1)
    for place in (tmp_path, path):
        loaded = load(str(place))
        np.testing.assert_array_equal(encoder(images(1, 2, 16)), loaded.encoder(images(1, 2, 16)))
        assert (loaded.step, loaded.image_size, loaded.mean) == (7, 20, (0.1,) * 3)


def test_what_holds_no_encoder_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.pth").write_text("not a checkpoint")
    np.savez(tmp_path / "other.npz", something=np.zeros(3))
    for name in ("missing", "empty", "notes.pth", "other.npz"):
        with pytest.raises(UserError) as caught:
            load(str(tmp_path / name))
        assert "\n" not in str(caught.value) and name in str(caught.value)
