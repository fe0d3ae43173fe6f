"""Means and deviations of data sets, of RGB in [0, 1]."""

NORMALISATIONS = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "fashion_mnist": ((0.2860,) * 3, (0.3530,) * 3),  # of its 60,000 training images
}


def normalisation(name: str, dataset: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, deviation) of the named normalisation; "auto" is the data set's own, ImageNet's where it has none here."""
    if name == "auto":
        name = dataset if dataset in NORMALISATIONS else "imagenet"
    return NORMALISATIONS[name]
