"""What every method shares: encoders, compiled pieces, the optimizer's step, the state that a checkpoint holds.

A method is a file of this folder, or a module of the user's, with one class that extends Method. The arguments of its
constructor that have a default are flags of the same names; key_encoder and num_examples are given to those that ask
for them. See docs/extending.md.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from moco_tf.config.types import Value
from moco_tf.contrast import shuffle_bn
from moco_tf.networks import naming
from moco_tf.networks.encoder import Encoder
from moco_tf.training import compiled, device
from moco_tf.training.collectives import Collectives, SingleProcess
from moco_tf.training.stop import StopRequest
from moco_tf.training.update import Guard, LossScale, averaged

# The uses of randomness in a step, see Method.seed_of.
FIRST_VIEW, SECOND_VIEW, SHUFFLE, OTHER_SHUFFLE, NOISE = range(5)

View = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, int], tf.Tensor]  # images, seed, positions, global batch


def as_given(images: tf.Tensor, seed: tf.Tensor, positions: tf.Tensor, count: int) -> tf.Tensor:
    """The view of images that are prepared already."""
    return images


def unpack(data: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None, tf.Tensor | None]:
    """(images of the first view, of the second, labels B int32, indices B int64) of what train_step is given.

    Args:
        data: images, or (images, labels), or (images, labels, indices); images are BxHxWx3, or two of these where each
            view has been cropped before. None stands for labels or indices that are not there.
    """
    images, labels, indices = (*data, None, None)[:3] if isinstance(data, tuple | list) else (data, None, None)
    first, second = images if isinstance(images, tuple | list) else (images, images)
    as_int = (None if x is None else tf.cast(x, dtype) for x, dtype in ((labels, tf.int32), (indices, tf.int64)))
    return first, second, *as_int


def _compiled(view: View, jit_compile: str, one_piece: bool) -> View:
    """Compiled by XLA as jit_compile says, see Method; on a CPU piece by piece where the view knows how."""
    if jit_compile == "none" or one_piece:
        return view
    if jit_compile == "views" and hasattr(view, "in_pieces") and not device.has_gpu():
        return view.in_pieces()
    return compiled.function(view)


class Method(keras.Model):
    """A method of pre-training: a query encoder and a train_step of its own.

    num_views: views of each image that a step looks at. uses_labels: whether train_step needs labels. classifies:
    whether the encoder's head is a linear classifier, one output a class. norms: what bn="shuffle" stands for.

    Args:
        query_encoder: the encoder that is learnt.
        collectives: what crosses ranks.
        views: the two random views of an image.
        jit_compile: what XLA compiles: "all", which is the whole step of one rank as one piece, and the pieces between
            collectives of several; the "views" alone; or "none".
        seed: of views and shuffles, the same on all ranks.
        bn: whose batch a batch norm sees: "split", the rank's own, or each of its splits; "shuffle", the same, but key
            images are shuffled across ranks and splits before (methods with a key encoder: ShuffleBN, section 3.3 of
            MoCo; a method without shuffles takes "sync" for it); "sync", the batch of all ranks (SyncBN). With "split"
            statistics that a query shares with its key may give the positives away; with "sync" they still share them,
            but those of more images say less of one.
        compression: "float16" sends gradients to other ranks in half the bytes; "none" as they are.
    """

    num_views, uses_labels, classifies, norms = 2, False, False, "shuffle"
    guard: Guard  # made by compile

    def __init__(
        self,
        query_encoder: Encoder,
        collectives: Collectives | None = None,
        views: tuple[View, View] = (as_given, as_given),
        jit_compile: str = "none",
        seed: int = 0,
        bn: str = "shuffle",
        compression: str = "none",
    ) -> None:
        super().__init__()
        if jit_compile not in ("all", "views", "none"):
            raise ValueError(f"jit_compile is {jit_compile!r}; expected 'all', 'views' or 'none'")
        if bn not in ("split", "shuffle", "sync"):
            raise ValueError(f"bn is {bn!r}; expected 'split', 'shuffle' or 'sync'")
        bn = self.norms if bn == "shuffle" else bn
        self.query_encoder = query_encoder
        self.collectives = collectives or SingleProcess()
        if bn == "sync" and jit_compile == "all" and self.collectives.size > 1:
            raise ValueError("bn='sync' has collectives inside of the encoder; expected jit_compile 'views' or 'none'")
        self.seed, self.bn, self.compression = seed, bn, compression
        self.steps_done = tf.Variable(0, trainable=False, dtype=tf.int64, name="steps_done")
        self.loss_scale = LossScale() if query_encoder.compute_dtype == "float16" else None
        self.stop = StopRequest()
        self.compile_pieces = jit_compile == "all"
        self.one_piece = self.compile_pieces and self.collectives.size == 1
        # One function for equal views: it is compiled once.
        functions = {view: _compiled(view, jit_compile, self.one_piece) for view in set(views)}
        self.views = [functions[view] for view in views]
        self._finish = self.piece(self._finish_step)

    def compile(self, optimizer: keras.optimizers.Optimizer, **kwargs: Any) -> None:  # noqa: A003
        """Sets the optimizer. Keras' own jit_compile stays off: no collective may stand inside a compiled function."""
        super().compile(optimizer=optimizer, jit_compile=False, **kwargs)
        for encoder in self.encoders():
            if self.compile_pieces:
                encoder.prepare_for_xla()
            elif not device.has_gpu():
                encoder.prepare_for_cpu()
            if self.bn == "sync":
                encoder.synchronise_norms(self.collectives)
        for norm in naming.having("over_ranks", self._parts()):  # of a predictor, for instance
            norm.for_xla = self.compile_pieces
            norm.over_ranks = self.collectives if self.bn == "sync" else None
        learnt = list(self.learnt().values())
        optimizer.build(learnt)
        self.guard = Guard(len(learnt))
        if self.one_piece:  # for whoever calls it; a loop around it is compiled with it
            setattr(self, "train_step", compiled.function(self.train_step))  # noqa: B010

    @classmethod
    def check(cls, own: Mapping[str, Value], batch_size: int) -> None:
        """Refuses arguments that do not fit a global batch, before anything is built. Raises UserError."""

    @classmethod
    def given(cls) -> set[str]:
        """The arguments without a default that it asks the assembly for: key_encoder, num_examples.

        Those of the classes that it extends count too, as far as it passes **kwargs on.
        """
        found: set[str] = set()
        for kind in (kind for kind in cls.__mro__ if "__init__" in vars(kind)):
            parameters = list(inspect.signature(kind).parameters.values())
            found |= {p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
            if kind is Method or parameters[-1].kind is not inspect.Parameter.VAR_KEYWORD:
                break
        return found

    def learnt(self) -> dict[str, keras.Variable]:
        """What the optimizer changes, by name: the query encoder's parameters. A method with more adds them."""
        return self.query_encoder.named_parameters()

    def piece(self, function: Callable) -> Callable:
        """A part of the step without collectives, compiled when the method compiles; as it is inside of one piece."""
        compiles = self.compile_pieces and not self.one_piece
        return compiled.function(function) if compiles else function

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Outputs of the query encoder's head: BxHxWx3 float to BxC float32."""
        return self.query_encoder(images, training=training)

    def encoders(self) -> list[Encoder]:
        """The query encoder, and the key encoder where there is one."""
        return [layer for layer in self.layers if isinstance(layer, Encoder)]

    def seed_of(self, use: int) -> tf.Tensor:
        """A seed (2 int32) for one use of randomness in this step; the same on all ranks."""
        return tf.stack([self.seed * 16 + use, tf.cast(self.steps_done, tf.int32)])

    def view(self, images: tf.Tensor, use: int, positions: tf.Tensor | None = None) -> tf.Tensor:
        """The random view for the images at these positions of the global batch; default: this rank's own images."""
        batch, collectives = images.shape[0], self.collectives
        positions = shuffle_bn.positions(batch, collectives) if positions is None else positions
        return self.views[use](images, self.seed_of(use), positions, batch * collectives.size)

    def permutation(self, use: int, batch: int) -> tf.Tensor | None:
        """ShuffleBN's permutation of the G rows for one use of randomness in this step; None without ShuffleBN."""
        if self.bn != "shuffle":
            return None
        return shuffle_bn.draw_permutation(self.seed_of(use), batch, self.collectives.size)

    def notes(self, batch_size: int) -> list[str]:
        """Lines to print at the start of a run; batch_size is global."""
        return []

    def gradients(
        self, tape: tf.GradientTape, target: tf.Tensor, of_target: tf.Tensor | float = 1.0
    ) -> list[tf.Tensor]:
        """Gradients in what is learnt, times the loss scale in float16; `apply` takes it out again.

        Args:
            tape: that recorded the target.
            target: the loss; or features, with the loss' gradient in them as of_target.
        """
        scale = 1.0 if self.loss_scale is None else tf.cast(self.loss_scale.scale, target.dtype)
        output_gradients = tf.ones_like(target) * of_target * scale
        return tape.gradient(target, [v.value for v in self.learnt().values()], output_gradients)

    def apply(self, gradients: list[tf.Tensor], metrics: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Averages gradients and metrics over ranks and takes the optimizer's step, if all is finite.

        A rank's wish to stop goes along.
        """
        return self._finish(*averaged(self.collectives, self.stop, gradients, metrics, self.compression))

    def _finish_step(self, gradients: list[tf.Tensor], metrics: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        passes = self.guard.passes(metrics["loss"], gradients, self.steps_done + 1)
        if self.loss_scale is None:
            tf.cond(passes, lambda: self._step(gradients), lambda: None)
        else:
            metrics["loss_scale"] = self._apply_scaled(gradients, self.loss_scale)
        self.steps_done.assign_add(1)
        return metrics

    def _step(self, gradients: list[tf.Tensor]) -> None:
        self.optimizer.apply(gradients, list(self.learnt().values()))

    def _apply_scaled(self, gradients: list[tf.Tensor], loss_scale: LossScale) -> tf.Tensor:
        """Takes the optimizer's step unless a gradient overflowed on any rank; returns the scale that was used."""
        used = tf.identity(loss_scale.scale)
        gradients, finite = loss_scale.unscale(gradients)
        tf.cond(finite, lambda: self._step(gradients), lambda: None)
        loss_scale.update(finite)
        return used

    def state(self) -> dict[str, dict[str, tf.Variable] | tf.Variable]:
        """All variables by name, in groups; what a checkpoint holds."""
        slots = {
            f"{slot}/{name}": v.value
            for slot, variables in self.optimizer.slots.items()
            for name, v in zip(self.learnt(), variables, strict=True)
        }
        parts = {f"{i}.{j}": v.value for i, layer in enumerate(self._parts()) for j, v in enumerate(layer.variables)}
        return {
            "query_encoder": {name: v.value for name, v in self.query_encoder.named_variables().items()},
            **({"parts": parts} if parts else {}),
            "optimizer": {**slots, "iterations": self.optimizer.iterations.value},
            "steps_done": self.steps_done,
            **({} if self.loss_scale is None else self.loss_scale.state()),
        }

    def running_statistics(self) -> list[tf.Variable]:
        """The running means and variances of all encoders and other parts, in a fixed order."""
        own = [v.value for encoder in self.encoders() for v in encoder.running_statistics()]
        return own + [v.value for part in self._parts() for v in part.non_trainable_variables]

    def _parts(self) -> list[keras.layers.Layer]:
        """What a method has beside its encoders, such as a predictor."""
        return [layer for layer in self.layers if not isinstance(layer, Encoder)]

    def synchronise(self) -> None:
        """Gives every rank the same state: rank 0's weights at the start of a run."""
        self.collectives.broadcast(tf.nest.flatten(self.state()))


def normalised(x: tf.Tensor) -> tf.Tensor:
    """Rows of length one."""
    return tf.math.l2_normalize(x, axis=-1)


def forward_passes(method: Method) -> int:
    """A step's passes through an encoder for each image, in units of a forward one; a backward pass counts as two.

    With a key encoder (moco and the supcon family): one view forward and backward, the other forward, 3 + 1; twice that
    where both views change places (symmetric, moco_v3). Without one (simclr, npid, supervised): 3 for each view.
    """
    if hasattr(method, "key_encoder"):
        return 4 * (1 + bool(getattr(method, "symmetric", False)))
    return 3 * method.num_views
