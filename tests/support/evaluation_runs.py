"""A run folder without pre-training, and the evaluations of it that one process and several ranks must agree on."""

import keras

from moco_tf.config.options import LABEL_FREE
from moco_tf.networks.encoder import Encoder
from moco_tf.training import checkpoint
from support.programs import call

SMALL = {"dataset": "folder", "batch_size": 16, "jit_compile": "false", "precision": "float32", "log_every": 1}
MEASURES = (*LABEL_FREE, "retrieval", "robustness")
PROBE = {**SMALL, "learning_rate": 0.5, "epochs": 3, "schedule": "cosine", "schedule_per": "step"}


def make_run(folder, seeds=(0,), **more):
    """Checkpoints of as many freshly initialised encoders, which say more of themselves; returns the folder."""
    for step, seed in enumerate(seeds, 1):
        keras.utils.set_random_seed(seed)
        encoder = Encoder("resnet10", stem="cifar", width=4, feature_dim=8)
        about = {"encoder": encoder.config, "image_size": 16, "mean": (0.5,) * 3, "std": (0.25,) * 3}
        about |= more
        state = {"query_encoder": {name: v.value for name, v in encoder.named_variables().items()}}
        checkpoint.save(folder / "checkpoints", step, state, about, keep=9)
    return folder


def evaluate(run, photos, out):
    """kNN, few labels, a probe on augmented images, one on cached features with a grid, fine-tuning, below `out`."""
    given = {"load": run, "data_dir": photos}
    every = {"k": "5,3", "knn_temperature": "0.1,0.5", "measures": ",".join(MEASURES)}
    call("knn", workdir=f"{out}/knn", **every, **given, **SMALL)
    few = {"shots": "1,5,99", "draws": 3, "baseline": f"raw_pixels,{run}"}
    call("fewshot", workdir=f"{out}/fewshot", **few, **given, **SMALL)
    call("lincls", workdir=f"{out}/frozen", steps=6, **given, **PROBE)
    grid = {"cache_features": True, "standardise": True, "learning_rates": "0.01,0.1"}
    call("lincls", workdir=f"{out}/cached", **grid, **given, **PROBE)
    call("lincls", workdir=f"{out}/finetune", finetune=True, backbone_learning_rate=0.1, steps=2, **given, **PROBE)
