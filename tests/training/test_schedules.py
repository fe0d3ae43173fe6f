"""Learning rates and momenta of the published recipes, as tables worked out from their formulas."""

import math

import numpy as np
import pytest
from support import parity_files

from moco_tf.config.options import ScheduleOptions
from moco_tf.training import schedules


def learning_rate(step, steps_per_epoch, base, **values):
    return schedules.learning_rate(step, steps_per_epoch, base, ScheduleOptions(**values))


# Per recipe: the arguments, then (step, learning rate).
TABLES = {
    "cifar10_demo_cosine": (  # e counts from 1
        {"steps_per_epoch": 97, "epochs": 200, "base": 0.06, "first_epoch": 1},
        [
            (0, 0.0599962989744),  # 0.06 * 0.5 * (1 + cos(pi / 200))
            (96, 0.0599962989744),
            (97, 0.0599851968109),  # cos(2 pi / 200)
            (49 * 97, 0.0512132034356),  # epoch 50: cos(pi / 4) = 0.70710678
            (99 * 97, 0.03),
            (199 * 97, 0.0),
            (200 * 97 - 1, 0.0),
        ],
    ),
    "cifar10_demo_steps": (  # with e from 1, the 120th epoch is the first of the lower rate
        {
            "steps_per_epoch": 97,
            "epochs": 200,
            "base": 0.06,
            "schedule": "milestones",
            "milestones": (120, 160),
            "first_epoch": 1,
        },
        [(0, 0.06), (119 * 97 - 1, 0.06), (119 * 97, 0.006), (159 * 97, 0.0006), (200 * 97 - 1, 0.0006)],
    ),
    "simclr_per_step_to_1e-3": (
        {"steps_per_epoch": 97, "epochs": 1000, "base": 0.6, "final_learning_rate": 1e-3, "schedule_per": "step"},
        [
            (0, 0.6),
            (24250, 0.3005 + 0.2995 * math.sqrt(0.5)),
            (48500, 0.3005),
            (72750, 0.3005 - 0.2995 * math.sqrt(0.5)),
            (97000, 1e-3),
        ],
    ),
    "imagenet_v1": (
        {"steps_per_epoch": 5004, "epochs": 200, "base": 0.03, "schedule": "milestones", "milestones": (120, 160)},
        [
            (0, 0.03),
            (120 * 5004 - 1, 0.03),
            (120 * 5004, 0.003),
            (160 * 5004 - 1, 0.003),
            (160 * 5004, 0.0003),
            (200 * 5004 - 1, 0.0003),
        ],
    ),
    "imagenet_v2_facebook": (  # per epoch, e from 0: the last epoch is a little above 0
        {"steps_per_epoch": 5004, "epochs": 200, "base": 0.03},
        [
            (0, 0.03),
            (5003, 0.03),
            (5004, 0.0299981494872),
            (100 * 5004, 0.015),
            (200 * 5004 - 1, 1.85051277509e-6),  # 0.03 (1 - cos(pi / 200)) / 2
        ],
    ),
    "imagenet_v2_tensorpack": (
        {"steps_per_epoch": 5004, "epochs": 200, "base": 0.03, "schedule_per": "step"},
        [
            (0, 0.03),
            (50 * 5004, 0.015 * (1 + math.sqrt(0.5))),
            (100 * 5004, 0.015),
            (150 * 5004, 0.015 * (1 - math.sqrt(0.5))),
        ],
    ),
    "imagenet_v1_large_batch": (  # 0.12 at batch 1024: 5 epochs of warm-up from 0.03, milestones where they were
        {
            "steps_per_epoch": 1251,
            "epochs": 200,
            "base": 0.12,
            "schedule": "milestones",
            "milestones": (120, 160),
            "schedule_per": "step",
            "warmup_epochs": 5,
            "warmup_start": 0.03,
        },
        [(0, 0.03), (1251, 0.048), (5 * 1251, 0.12), (120 * 1251 - 1, 0.12), (120 * 1251, 0.012), (160 * 1251, 0.0012)],
    ),
    "supcontrast": (  # 195 steps: 50,000 images in batches of 256
        {"steps_per_epoch": 195, "epochs": 1000, "base": 0.12, "schedule_per": "step", "warmup_epochs": 5},
        [
            (0, 0.0),
            (1, 0.12 / 975),
            (195, 0.024),
            (974, 0.12 * 974 / 975),
            (975, 0.12),
            (975 + 194025 // 2, 0.06 + 0.06 * math.sin(math.pi * 0.5 / 194025)),  # half a step before the middle
            (195000, 0.0),
        ],
    ),
    "linear_probe": (
        {"steps_per_epoch": 5004, "epochs": 100, "base": 30.0, "schedule": "milestones", "milestones": (60, 80)},
        [(0, 30.0), (60 * 5004 - 1, 30.0), (60 * 5004, 3.0), (80 * 5004 - 1, 3.0), (80 * 5004, 0.3)],
    ),
    "adam_constant": (
        {"steps_per_epoch": 97, "epochs": 500, "base": 1e-3, "schedule": "constant"},
        [(0, 1e-3), (48499, 1e-3)],
    ),
    "warm_up_per_epoch": (
        {"steps_per_epoch": 10, "epochs": 6, "base": 1.0, "warmup_epochs": 4, "schedule": "constant"},
        [(0, 0.0), (9, 0.0), (10, 0.25), (39, 0.75), (40, 1.0), (59, 1.0)],
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_recipe(name):
    arguments, table = TABLES[name]
    for step, expected in table:
        value = learning_rate(step, **arguments)
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-12), step


def test_milestones_with_float_epochs_and_other_decay():
    assert [schedules.milestones(8.0, e, (2, 3), 0.5) for e in (0, 1.99, 2, 2.5, 3, 9)] == [8, 8, 4, 4, 2, 2]
    assert schedules.milestones(8.0, 5, ()) == 8.0


def test_half_cosine_and_warm_up():
    assert [schedules.cosine(2.0, p, 1.0) for p in (0, 1)] == [2.0, 1.0]
    assert schedules.cosine(2.0, 1 / 3, 1.0) == pytest.approx(1.75)  # cos(pi / 3) = 1/2
    assert [schedules.warmup(2.0, p, 1.0) for p in (0, 0.25, 1)] == [1.0, 1.25, 2.0]


@pytest.mark.parametrize("per", ["epoch", "step"])
@pytest.mark.parametrize("final", [0.0, 0.01])
def test_rises_to_base_then_falls_to_final(per, final):
    values = {"epochs": 12, "schedule_per": per, "final_learning_rate": final}
    rates = [learning_rate(step, 7, 0.5, **values, warmup_epochs=3, warmup_start=0.1) for step in range(12 * 7 + 1)]
    rising, falling = rates[: 3 * 7 + 1], rates[3 * 7 :]
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True)
    assert (rates[0], rates[21], rates[-1]) == (0.1, 0.5, final)
    assert max(rates) == 0.5 and min(falling) == final
    assert len(set(rates)) == (12 * 7 + 1 if per == "step" else 13)  # the rate past the end too


def test_keeps_the_final_rate_past_the_end():
    for per in ("epoch", "step"):
        assert learning_rate(99, 2, 1.0, epochs=5, schedule_per=per, final_learning_rate=0.25) == 0.25


def test_per_step_depends_on_the_share_of_training_alone():
    """The same share of the training gives the same rate."""
    for share in (0.0, 0.1, 0.5, 0.75):
        rates = {
            round(learning_rate(int(share * 40 * n), n, 0.3, epochs=40, schedule_per="step", warmup_epochs=8), 12)
            for n in (10, 100, 1000)
        }
        assert len(rates) == 1


def test_key_momentum():
    assert schedules.key_momentum(70, 100, 0.999) == 0.999
    cosine = [schedules.key_momentum(t, 100, 0.99, "cosine") for t in range(101)]
    assert cosine == sorted(cosine)
    assert cosine[0] == pytest.approx(0.99) and cosine[50] == pytest.approx(0.995) and cosine[100] == 1.0
    assert cosine[25] == pytest.approx(1 - 0.01 * (1 + math.sqrt(0.5)) / 2)
    assert schedules.key_momentum(150, 100, 0.99, "cosine") == 1.0


GOOD = {"step": 0, "steps_per_epoch": 10, "epochs": 5, "base": 0.1}


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"schedule": "linear"}, "schedule is 'linear'; expected one of constant, cosine, milestones"),
        ({"schedule_per": "batch"}, "per is 'batch'; expected 'epoch' or 'step'"),
        ({"step": -1}, "step is -1; expected 0 or more"),
        ({"steps_per_epoch": 0}, "steps_per_epoch is 0; expected 1 or more"),
        ({"epochs": 0}, "epochs (0)"),
        ({"warmup_epochs": 5}, "warmup_epochs is 5; expected 0 up to below epochs (5)"),
        ({"warmup_epochs": -1}, "warmup_epochs is -1"),
        ({"first_epoch": 1, "schedule_per": "step"}, "first_epoch is 1 with per='step'; expected 0"),
        ({"base": -0.1}, "expected none below 0"),
        ({"schedule": "milestones", "milestones": ()}, "without any; expected epochs"),
        ({"schedule": "milestones", "milestones": (3,), "decay": 0}, "decay is 0; expected a factor above 0"),
    ],
)
def test_bad_values_say_so(changes, message):
    with pytest.raises(ValueError) as error:
        learning_rate(**{**GOOD, **changes})
    assert message in str(error.value)


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: schedules.cosine(1.0, 1.5), "progress is 1.5; expected a number in [0, 1]"),
        (lambda: schedules.epoch_number(0, 10, first_epoch=-1), "first_epoch is -1; expected 0 or more"),
        (lambda: schedules.warmup(1.0, -0.5), "progress is -0.5; expected a number in [0, 1]"),
        (lambda: schedules.key_momentum(0, 10, 1.1), "key momentum is 1.1; expected a number in [0, 1]"),
        (lambda: schedules.key_momentum(0, 10, 0.9, "linear"), "schedule is 'linear'; expected 'constant' or 'cosine'"),
        (lambda: schedules.key_momentum(0, 0, 0.9), "step 0 of 0"),
    ],
)
def test_bad_parts_say_so(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)


# ---- MoCo v3's, of the public code


def recipes_v3():
    return [name.removesuffix("/base_lr") for name in case_v3() if name.endswith("/base_lr")]


def case_v3():
    return dict(np.load(parity_files.path("schedules_v3.npz")))


def test_moco_v3s_recipes():
    """Per step, from a rate of exactly 0; the momentum's cosine has no warm-up."""
    case, recipes = case_v3(), recipes_v3()
    for recipe in recipes:
        own = {key.rpartition("/")[2]: value for key, value in case.items() if key.startswith(recipe + "/")}
        peak, per_epoch, epochs = own["base_lr"] * own["batch"] / 256, int(own["steps_per_epoch"]), int(own["epochs"])
        flags = {"schedule_per": "step", "epochs": epochs, "warmup_epochs": float(own["warmup_epochs"])}
        steps = own["step"].tolist()
        rates = [learning_rate(step, per_epoch, float(peak), **flags) for step in steps]
        np.testing.assert_allclose(rates, own["lr"], rtol=0, atol=1e-9 * peak, err_msg=recipe)
        base = float(own["base_momentum"])
        momenta = [schedules.key_momentum(step, epochs * per_epoch, base, "cosine") for step in steps]
        np.testing.assert_allclose(momenta, own["momentum"], rtol=0, atol=1e-9, err_msg=recipe)
        assert steps[0] == 0 and rates[0] == 0.0 and momenta[0] == base
    assert len(recipes) >= 6


def test_moco_v3s_linear_probes():
    """Half a cosine per epoch, from epoch 0: .4 and 12 at a batch of 1024."""
    case = case_v3()
    for name, peak in (("linear_resnet50", 0.4), ("linear_vit", 12.0)):
        rates = [learning_rate(17 * int(epoch), 17, peak, epochs=90) for epoch in case[f"{name}/epoch"]]
        np.testing.assert_allclose(rates, case[f"{name}/lr"], rtol=0, atol=1e-9 * peak)
