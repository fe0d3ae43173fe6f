"""Networks under torchvision's names, as other implementations write them."""

import numpy as np

DEPTHS = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
DEPTHS |= {"resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}
BOTTLENECKS = ("resnet50", "resnet101", "resnet152")

HEADS = {
    "none": {},
    "linear": {"fc": True},
    "mlp": {"fc.0": True, "fc.2": True},
    "mlp_bn": {"fc.0": False, "fc.3": True},
}


def network(arch="resnet10", width=4, kernel=7, head="linear", dim=6, hidden=5, seed=0):
    """{torchvision name: float32 array} of a small ResNet, written down independently of moco_tf."""
    rng, out = np.random.default_rng(seed), {}

    def conv(name, cout, cin, k):
        out[f"{name}.weight"] = rng.normal(size=(cout, cin, k, k)).astype("f4")

    def norm(name, c):
        for part in ("weight", "bias", "running_mean", "running_var"):
            out[f"{name}.{part}"] = rng.uniform(size=c).astype("f4")

    conv("conv1", width, 3, kernel)
    norm("bn1", width)
    cin = width
    for stage, depth in enumerate(DEPTHS[arch]):
        planes = width * 2**stage
        cout = planes * (4 if arch in BOTTLENECKS else 1)
        for i in range(depth):
            block = f"layer{stage + 1}.{i}"
            shapes = [(planes, cin, 1), (planes, planes, 3), (cout, planes, 1)]
            shapes = shapes if arch in BOTTLENECKS else [(planes, cin, 3), (planes, planes, 3)]
            for n, shape in enumerate(shapes, start=1):
                conv(f"{block}.conv{n}", *shape)
                norm(f"{block}.bn{n}", shape[0])
            if i == 0 and (stage or cin != cout):
                conv(f"{block}.downsample.0", cout, cin, 1)
                norm(f"{block}.downsample.1", cout)
            cin = cout
    widths = [cin, dim] if head == "linear" else [cin, hidden, dim]
    for (name, bias), fan_in, units in zip(HEADS[head].items(), widths, widths[1:]):
        out[f"{name}.weight"] = rng.normal(size=(units, fan_in)).astype("f4")
        if bias:
            out[f"{name}.bias"] = rng.normal(size=units).astype("f4")
    if head == "mlp_bn":
        norm("fc.1", hidden)
    return out
