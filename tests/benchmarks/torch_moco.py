"""A PyTorch step of MoCo, to compare with: run as a program, it needs PyTorch and nothing of this package.

    python tests/benchmarks/torch_moco.py

Reads one JSON object a line and answers each with one. The first holds the settings (`Settings`); the answer is
{"torch": version, "parameters": count, "device": ..., "no_views": why it cannot make views, or null} once a few steps
are done, or {"missing": reason} where PyTorch cannot be imported. Then {"steps": n} gives {"seconds": of a step},
{"steps": n, "views": true} the same with PIL views of random images, and {"memory": true} the peak in bytes. It ends
with its input.

The step does what MoCo.step does on prepared images: the key encoder's moving average, shuffled keys, queries forward
and backward against the queue, SGD, enqueue. Everything is done the way that is fast in eager PyTorch: channels_last,
autocast, operations on lists of tensors. Views are made by a DataLoader with as many workers as there are threads;
what they have prepared when a measurement begins, two batches each, is in PyTorch's favour.
"""

import dataclasses
import json
import resource
import sys
import time

try:
    import torch
    import torch.nn.functional as F  # noqa: N812 - its usual name
    import torch_vit  # beside this file
    from torch import nn
except ImportError as error:
    print(json.dumps({"missing": f"{error}"}), flush=True)
    sys.exit()
try:
    import pil_views  # beside this file
    from PIL import Image

    NO_VIEWS = None
except ImportError as error:
    NO_VIEWS = f"{error}"

DEPTHS = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
DEPTHS |= {"resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of the same names; precision is float32 or bfloat16, gpu whether to use one, batch_size of a step."""

    arch: str
    stem: str
    width: int
    bn_splits: int
    head: str
    hidden_dim: int
    feature_dim: int
    batch_size: int
    image_size: int
    queue_size: int
    temperature: float
    key_momentum: float
    shuffle_bn: bool
    learning_rate: float
    momentum: float
    weight_decay: float
    nesterov: bool
    precision: str
    threads: int
    gpu: bool
    warmup_steps: int
    compile: bool = False  # torch.compile for both encoders; else they run eagerly
    view: dict | None = None  # pil_views.View's arguments
    vit: dict | None = None  # torch_vit.ViT's arguments, where arch is one
    stored: tuple[int, int, int, int] | None = None  # shape of the random images that views are made of, NxHxWx3


class SplitNorm(nn.BatchNorm2d):
    """Batch norm over each of `splits` strided splits of the batch, BxCxHxW; running statistics move by their mean."""

    def __init__(self, channels: int, splits: int) -> None:
        super().__init__(channels)
        self.splits = splits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, (b, c, h, w) = self.splits, x.shape
        mean, variance = self.running_mean.repeat(n), self.running_var.repeat(n)
        weight, bias = self.weight.repeat(n), self.bias.repeat(n)
        y = F.batch_norm(x.reshape(b // n, n * c, h, w), mean, variance, weight, bias, True, self.momentum, self.eps)
        with torch.no_grad():
            self.running_mean.copy_(mean.view(n, c).mean(0))
            self.running_var.copy_(variance.view(n, c).mean(0))
        return y.reshape(b, c, h, w)


def norm(channels: int, splits: int) -> nn.Module:
    """PyTorch's own batch norm where the batch is not split."""
    return SplitNorm(channels, splits) if splits > 1 else nn.BatchNorm2d(channels)


def conv(inputs: int, outputs: int, size: int, stride: int) -> nn.Conv2d:
    """size x size convolution without bias, padded by size // 2."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class Block(nn.Module):
    """Residual block of convolutions (channels, size, stride), each with a batch norm."""

    def __init__(self, inputs: int, convs: list[tuple[int, int, int]], project: bool, splits: int) -> None:
        super().__init__()
        layers, channels = [], inputs
        for outputs, size, stride in convs:
            layers += [conv(channels, outputs, size, stride), norm(outputs, splits), nn.ReLU(inplace=True)]
            channels = outputs
        self.body = nn.Sequential(*layers[:-1])
        stride = max(stride for _, _, stride in convs)
        self.shortcut = nn.Identity()
        if project:
            self.shortcut = nn.Sequential(conv(inputs, channels, 1, stride), norm(channels, splits))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


def encoder(s: Settings) -> nn.Sequential:
    """ResNet or ViT, and head: Bx3xSxS to BxC."""
    if s.vit:
        return nn.Sequential(torch_vit.ViT(s.image_size, **s.vit), *head(s, s.vit["dim"]))
    size, stride = (7, 2) if s.stem == "imagenet" else (3, 1)
    layers = [conv(3, s.width, size, stride), norm(s.width, s.bn_splits), nn.ReLU(inplace=True)]
    layers += [nn.MaxPool2d(3, 2, 1)] if s.stem == "imagenet" else []
    channels, bottleneck = s.width, s.arch in ("resnet50", "resnet101", "resnet152")
    for stage, depth in enumerate(DEPTHS[s.arch]):
        filters = s.width * 2**stage
        for i in range(depth):
            stride = 2 if stage and i == 0 else 1
            convs = [(filters, 3, stride), (filters, 3, 1)]
            if bottleneck:
                convs = [(filters, 1, 1), (filters, 3, stride), (4 * filters, 1, 1)]
            layers.append(Block(channels, convs, i == 0 and (stride > 1 or bottleneck), s.bn_splits))
            channels = convs[-1][0]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), *head(s, channels))


def head(s: Settings, inputs: int) -> list[nn.Module]:
    """Bx`inputs`x1x1 to BxC."""
    if s.head == "linear":
        return [nn.Flatten(), nn.Linear(inputs, s.feature_dim)]
    hidden, with_norm = s.hidden_dim or inputs, s.head == "mlp_bn"
    layers = [nn.Flatten(), nn.Linear(inputs, hidden, bias=not with_norm)]
    if with_norm:
        layers += [nn.Unflatten(1, (hidden, 1, 1)), norm(hidden, s.bn_splits), nn.Flatten()]
    return [*layers, nn.ReLU(inplace=True), nn.Linear(hidden, s.feature_dim)]


class Pairs(torch.utils.data.Dataset):
    """Two views of each of some random images."""

    def __init__(self, s: Settings) -> None:
        self.images = torch.randint(0, 256, s.stored, dtype=torch.uint8).numpy()
        self.view = pil_views.View(**s.view)

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = Image.fromarray(self.images[index % len(self.images)])
        return torch.from_numpy(self.view(image)), torch.from_numpy(self.view(image))


def loader(s: Settings) -> torch.utils.data.DataLoader:
    """Endless batches of pairs."""
    return torch.utils.data.DataLoader(
        Pairs(s), s.batch_size, num_workers=s.threads, drop_last=True, pin_memory=s.gpu and torch.cuda.is_available()
    )


class Step:
    """One MoCo step after another on the same random images."""

    def __init__(self, s: Settings) -> None:
        torch.manual_seed(0)
        self.s, self.device = s, torch.device("cuda" if s.gpu and torch.cuda.is_available() else "cpu")
        self.query, self.key = (self.place(encoder(s)).train() for _ in range(2))
        self.key.load_state_dict(self.query.state_dict())
        self.key.requires_grad_(False)
        if s.compile:
            self.query.compile(dynamic=False)
            self.key.compile(dynamic=False)
        self.pairs = list(self.key.parameters()), list(self.query.parameters())
        self.optimizer = torch.optim.SGD(
            self.query.parameters(), s.learning_rate, s.momentum, 0, s.weight_decay, s.nesterov, foreach=True
        )
        self.queue = F.normalize(torch.randn(s.queue_size, s.feature_dim, device=self.device))  # KxC
        self.pointer = 0
        shape = (s.batch_size, 3, s.image_size, s.image_size)
        self.images = [self.place(torch.randn(shape)) for _ in range(2)]
        self.batches = None

    def place(self, x: nn.Module | torch.Tensor) -> nn.Module | torch.Tensor:
        """On the device, channels last."""
        return x.to(self.device, memory_format=torch.channels_last, non_blocking=True)

    def __call__(self, views: bool = False) -> tuple[torch.Tensor, ...]:
        """The step on prepared images or on views; returns its metrics, which may still be being computed."""
        im_q, im_k = [self.place(x) for x in next(self.batches)] if views else self.images
        with torch.no_grad():
            keys, queries = self.pairs
            torch._foreach_lerp_(keys, queries, 1 - self.s.key_momentum)
            k = self.keys(im_k)  # BxC
        q = self.encode(self.query, im_q)  # BxC
        l_pos, l_neg = (q * k).sum(1, keepdim=True), q @ self.queue.T  # Bx1, BxK
        logits = torch.cat([l_pos, l_neg], 1) / self.s.temperature
        loss = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=self.device))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            nearer = (logits[:, 1:] > logits[:, :1]).sum(1)
            self.enqueue(k)
            return loss.detach(), *((nearer < n).float().mean() for n in (1, 5)), q.std(0).mean()

    def keys(self, images: torch.Tensor) -> torch.Tensor:
        """Keys of the images, computed in a random order where --shuffle_bn says so."""
        if not self.s.shuffle_bn:
            return self.encode(self.key, images)
        order = torch.randperm(len(images), device=self.device)
        return self.encode(self.key, images[order])[torch.argsort(order)]

    def encode(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Normalised features, float32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.s.precision == "bfloat16"):
            features = network(images)
        return F.normalize(features.float())

    def enqueue(self, k: torch.Tensor) -> None:
        """Replaces the oldest keys."""
        rows = (torch.arange(len(k), device=self.device) + self.pointer) % self.s.queue_size
        self.queue.index_copy_(0, rows, k)
        self.pointer = (self.pointer + len(k)) % self.s.queue_size

    def seconds(self, steps: int, views: bool = False) -> float:
        """Seconds a step, over so many in a row, until the last one's metrics can be read."""
        if views and self.batches is None:
            self.batches = iter(loader(self.s))
            self(views)
        start = time.perf_counter()
        for _ in range(steps):
            metrics = self(views)
        for value in metrics:
            value.item()
        return (time.perf_counter() - start) / steps

    def peak_memory(self) -> int:
        """Most bytes in use at one time until now: PyTorch's on the GPU, without one the process' resident set."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Answers what comes in."""
    settings = Settings(**json.loads(sys.stdin.readline()))
    torch.set_num_threads(settings.threads)
    # TensorFlow multiplies float32 with TF32 where there is that; PyTorch by itself does so in convolutions only.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True
    step = Step(settings)
    step.seconds(settings.warmup_steps)
    parameters = sum(p.numel() for p in step.query.parameters())
    answer = {"torch": torch.__version__, "parameters": parameters, "device": step.device.type, "no_views": NO_VIEWS}
    print(json.dumps(answer), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "steps" in asked:
            answer = {"seconds": step.seconds(asked["steps"], asked["views"])}
        else:
            answer = {"bytes": step.peak_memory()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
