"""A benchmark's figures as text: a Markdown table and lines below it."""

from collections.abc import Iterator

_ROWS = {
    "step, prepared images": ("step", "prepared"),
    "step with views": ("step", "views"),
    "input alone": ("input",),
    "input and step": ("together",),
    "PyTorch, prepared images": ("torch",),
    "PyTorch, PIL views by a DataLoader": ("torch", "with_views"),
}


def table(figures: dict) -> str:
    """What moco_tf.bench prints, from what its JSON file holds."""
    return "\n".join([*_heading(figures), "", *_rates(figures), "", *_notes(figures)])


def _heading(figures: dict) -> Iterator[str]:
    r, b, m = figures["recipe"], figures["bench"], figures["machine"]
    yield (
        f"{r['method']}: {r['images']}, {r['image_size']} px, views {r['views']}; {r['arch']} width {r['width']}, "
        f"{r['stem']} stem, {r['head']} head to {r['feature_dim']}, {r['precision']}, XLA compiles {r['compiled']}"
    )
    yield f"batch {r['batch_size']}: {r['batch_size'] // r['ranks']} on each rank, ranks: {r['ranks']}"
    yield f"{m['gpu'] or 'no GPU'}; {m['cpu']}, {m['cores']} cores, {m['threads']} threads a rank; {_versions(figures)}"
    yield f"medians of {b['repeats']} repeats of {b['bench_steps']} steps, smallest and largest in brackets"


def _versions(figures: dict) -> str:
    rival = figures["torch"] and {"torch": figures["torch"]["torch"]}
    return ", ".join(f"{name} {version}" for name, version in {**figures["versions"], **(rival or {})}.items())


def _rates(figures: dict) -> Iterator[str]:
    yield "| | ms a step | images/s |"
    yield "|---|---|---|"
    for name, path in _ROWS.items():
        found = figures
        for key in path:
            found = found and found[key]
        if found:
            yield f"| {name} | {_spread(found['ms'])} | {_spread(found['images_per_second'])} |"


def _spread(values: dict[str, float]) -> str:
    return f"{_digits(values['median'])} ({_digits(values['min'])} to {_digits(values['max'])})"


def _digits(value: float) -> str:
    """Three digits, all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _notes(figures: dict) -> Iterator[str]:
    if figures["torch"]:
        yield from _comparison(figures["torch"])
    if figures["together"]:
        waiting = figures["together"]["waiting"]
        yield f"waiting for input: {waiting['median']:.1%} ({waiting['min']:.1%} to {waiting['max']:.1%}) of the time"
    yield f"Python around the step: {figures['python_overhead_ms']:.2f} ms"
    yield f"peak memory: {figures['peak_memory_bytes'] / 1e9:.2f} GB {_of(figures)}"
    for name, given in figures["collectives"].items():
        counted = f"{name}: {given['calls']} a step with {given['bytes'] / 1e6:,.3f} MB of a rank"
        yield f"{counted}, {given['sent_bytes'] / 1e6:,.3f} MB sent to others"
    yield from _shuffles(figures["exchanges"])
    yield from _operations(figures)
    if figures["start_up"]["seconds"]:
        yield f"from the start of the process to the end of its first step: {figures['start_up']['seconds']:.1f} s"


def _shuffles(exchanges: dict) -> Iterator[str]:
    for name, form in (("alltoall", "the shuffle"), ("allgather", "its original form, by allgather")):
        if name in exchanges:
            found = exchanges[name]
            time = f" in {_spread(found['ms'])} ms" if found["ms"] else ""
            yield f"{form}, alone: {found['sent_bytes'] / 1e6:,.3f} MB sent to others{time}"
    if exchanges["gradients"]["ms"]:
        yield f"gradients, alone: {_spread(exchanges['gradients']['ms'])} ms"


def _of(figures: dict) -> str:
    return "on the GPU" if figures["machine"]["gpu"] else "resident"


def _comparison(torch: dict) -> Iterator[str]:
    ratio, memory = torch["speed_ratio"], torch["peak_memory_bytes"]
    yield (
        f"{ratio['median']:.2f} times as fast as PyTorch {torch['torch']} ({ratio['min']:.2f} to {ratio['max']:.2f} in "
        f"single turns), with {torch['memory_ratio']:.2f} times its peak memory "
        f"({memory['moco_tf'] / 1e9:.2f} against {memory['torch'] / 1e9:.2f} GB)"
    )
    if views := torch["with_views"]:
        ratio = views["speed_ratio"]
        yield f"with views: {ratio['median']:.2f} times ({ratio['min']:.2f} to {ratio['max']:.2f} in single turns)"
    else:
        yield f"views not compared: {torch['no_views']}"


def _operations(figures: dict) -> Iterator[str]:
    if figures["multiply_adds"] is None:
        return
    yield f"multiply-adds a step and rank: {figures['multiply_adds'] / 1e9:,.2f} G (the encoders alone)"
    for kind, name in (("prepared", "prepared images"), ("views", "with views")):
        found = figures["step"][kind]
        share = f", {found['share_of_peak']:.1%} of the GPU's peak" if found["share_of_peak"] else ""
        yield f"reached, {name}: {found['flops_per_second'] / 1e12:,.3f} TFLOP/s a rank{share}"
